//! The Fashion-MNIST sample that arbora-tasks bundles.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::idx::Labelled;
use crate::{atomic_file, shell};

const TRAIN_PER_CLASS: usize = 800;
const TEST_PER_CLASS: usize = 200;
/// What the bundled files may take in the repository, in bytes.
const SIZE_LIMIT: u64 = 5_000_000;

/// Writes `crates/arbora-tasks/sample/` from the Fashion-MNIST files in `source`.
pub fn make(source: &Path) -> Result<()> {
    let folder = shell::root().join("crates/arbora-tasks/sample");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let make = |part, per_class| {
        let sample = Labelled::read(source, part)?.balanced(per_class)?;
        sample.write(&folder, part)?;
        anyhow::Ok(sample.images.len())
    };
    let train = make("train", TRAIN_PER_CLASS)?;
    let test = make("t10k", TEST_PER_CLASS)?;
    atomic_file::write(&folder.join("NOTICE"), notice_text(train, test))?;

    let mut size = 0;
    for entry in fs::read_dir(&folder)? {
        size += entry?.metadata()?.len();
    }
    ensure!(
        size <= SIZE_LIMIT,
        "the sample takes {size} bytes, more than {SIZE_LIMIT}"
    );
    let folder = folder.display();
    println!("{folder}: {train} + {test} images, {size} bytes");
    Ok(())
}

fn notice_text(train: usize, test: usize) -> String {
    format!(
        "Fashion-MNIST sample\n\
         ====================\n\n\
         {train} training and {test} test images of Fashion-MNIST (28x28 grey, 10 classes), unchanged.\n\
         Made by `cargo xtask data fashion-mnist` and `cargo xtask data sample`: the first\n\
         {TRAIN_PER_CLASS} (training) and {TEST_PER_CLASS} (test) images of each class in file order, interleaved by class,\n\
         from the files of the Debian package `dataset-fashion-mnist`.\n\n\
         Source: https://github.com/zalandoresearch/fashion-mnist\n\
         Han Xiao, Kashif Rasul, Roland Vollgraf: Fashion-MNIST: a Novel Image Dataset for\n\
         Benchmarking Machine Learning Algorithms, arXiv:1708.07747.\n\n\
         {FASHION_MNIST_LICENSE}"
    )
}

/// The notice that the data's licence asks to keep with every copy.
pub const FASHION_MNIST_LICENSE: &str = "\
The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a
copy of this software and associated documentation files (the \"Software\"),
to deal in the Software without restriction, including without limitation
the rights to use, copy, modify, merge, publish, distribute, sublicense,
and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included
in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS
OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";
