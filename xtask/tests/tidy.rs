//! Tests of the repository itself: that its pages agree with its code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

// What continuous integration checks.
#[path = "../src/backend.rs"]
#[allow(dead_code)]
mod backend;
use backend::Backend;

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file with the ending in the folder and below.
fn files(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|found| found == ending) {
            found.push(path);
        }
    }
}

/// The targets of a page's links.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
}

#[test]
fn links_between_pages_lead_to_files() {
    let root = root();
    let mut found = vec![root.join("README.md")];
    files(&root.join("docs"), "md", &mut found);
    files(&root.join("crates"), "md", &mut found);
    for page in found {
        for link in links(&read(&page)) {
            let file = link.split('#').next().unwrap_or_default();
            if link.contains("://") || file.is_empty() {
                continue;
            }
            let target = page.parent().unwrap().join(file);
            assert!(
                target.try_exists().unwrap(),
                "{}: dead link {link}",
                page.display()
            );
        }
    }
}

#[test]
fn the_readmes_program_is_that_of_a_compiled_example() {
    let readme = read(&root().join("README.md"));
    let example = read(&root().join("crates/arbora-attention/examples/replace_cross_attention.rs"));
    let (_, rest) = readme.split_once("```rust\n").expect("a program");
    let (program, _) = rest.split_once("```").expect("the program's end");
    assert!(program.contains("TreeCrossAttention"));
    assert!(
        example.contains(program.trim_end()),
        "README.md's program is no part of the example any more"
    );
}

#[test]
fn every_member_is_on_the_map() {
    let readme = read(&root().join("README.md"));
    let map = read(&root().join("docs/architecture.md"));
    for package in fs::read_dir(root().join("crates")).unwrap() {
        let name = package.unwrap().file_name().into_string().unwrap();
        let folder = format!("`crates/{name}`");
        assert!(readme.contains(&folder), "README.md does not name {folder}");
        assert!(
            map.contains(&format!("### {folder}")),
            "docs/architecture.md has no heading {folder}"
        );
    }
}

#[test]
fn every_source_says_what_is_in_it() {
    let mut sources = Vec::new();
    for folder in ["crates", "benches", "xtask"] {
        files(&root().join(folder), "rs", &mut sources);
    }
    let silent = |path: &&PathBuf| !read(path).starts_with("//!");
    let silent: Vec<&PathBuf> = sources.iter().filter(silent).collect();
    assert!(
        silent.is_empty(),
        "without a first line of `//!`: {silent:?}"
    );
}

#[test]
fn sources_have_at_most_600_lines_before_their_tests() {
    let mut sources = Vec::new();
    for folder in ["crates", "xtask/src"] {
        files(&root().join(folder), "rs", &mut sources);
    }
    let is_source = |path: &&PathBuf| path.components().any(|part| part.as_os_str() == "src");
    for path in sources.iter().filter(is_source) {
        let text = read(path);
        let is_test = |line: &&str| line.starts_with("#[cfg(") && line.contains("test");
        let lines = text.lines().take_while(|line| !is_test(line)).count();
        assert!(lines <= 600, "{}: {lines}", path.display());
    }
}

#[test]
fn words_that_the_style_refuses_are_nowhere() {
    let style = read(&root().join("docs/style.md"));
    let rows = style
        .lines()
        .skip_while(|line| *line != "|---|---|")
        .skip(1);
    let words: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|words| words.split(','))
        .map(str::trim)
        .collect();
    assert!(words.len() > 9, "{words:?}");
    let (mut sources, mut pages) = (Vec::new(), vec![root().join("README.md")]);
    files(&root().join("crates"), "rs", &mut sources);
    files(&root().join("crates"), "md", &mut pages);
    files(&root().join("docs/guide"), "md", &mut pages);
    pages
        .extend(["architecture", "reliability"].map(|name| root().join(format!("docs/{name}.md"))));
    for path in sources.iter().chain(&pages) {
        let text = read(path).to_lowercase();
        let found: Vec<_> = words.iter().filter(|word| text.contains(**word)).collect();
        assert!(
            found.is_empty(),
            "{}: {found:?}, docs/style.md",
            path.display()
        );
    }
}

/// CI checks the backends that are passed through all at once, and of CubeCL's wgpu alone. What only graphics APIs
/// have is a feature of its own, `adapters`.
#[test]
fn features_of_cubecl_backends_differ_in_the_name_alone() {
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = metadata.current_dir(root()).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let wgpu = Backend::Wgpu.name();
    for package in metadata["packages"].as_array().unwrap() {
        let features = &package["features"];
        let Some(of_wgpu) = features[wgpu].as_array() else {
            continue;
        };
        for backend in Backend::PASSED_THROUGH {
            let is_graphics = matches!(backend, Backend::Vulkan | Backend::Webgpu | Backend::Metal);
            let expected: Vec<String> = of_wgpu
                .iter()
                .map(|one| one.as_str().unwrap())
                .filter(|one| *one != "adapters" || is_graphics)
                .map(|one| one.replace(wgpu, backend.name()))
                .collect();
            let (package, backend) = (&package["name"], backend.name());
            assert_eq!(
                features[backend],
                Value::from(expected),
                "{package}: feature {backend}"
            );
        }
    }
    let mut sources = Vec::new();
    for folder in ["crates", "benches"] {
        files(&root().join(folder), "rs", &mut sources);
    }
    for path in sources {
        let source = read(&path);
        let mentions = |backend: Backend| {
            let condition = format!("feature = \"{}\"", backend.name());
            source.matches(&condition).count()
        };
        for backend in Backend::PASSED_THROUGH {
            assert!(
                mentions(backend) >= mentions(Backend::Wgpu),
                "{}: fewer conditions on {} than on wgpu",
                path.display(),
                backend.name()
            );
        }
    }
}
