//! Operators on several threads.

use arbora_attention::{DenseAttentionOptions, dense_attention};
use arbora_testing::{autodiff_device, random, values};
use burn::tensor::Tensor;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const ROUNDS: usize = 20;

/// Heads are wider than any kernel takes, so that the reference body is differentiated.
fn wide_gradients() {
    let device = autodiff_device();
    for _ in 0..ROUNDS {
        let rows = random([1, 3, 1, 300], 1, &device).require_grad();
        let options = DenseAttentionOptions {
            first_key: 0,
            scale: None,
        };
        let context = dense_attention(rows.clone(), rows.clone(), rows.clone(), None, options);
        let gradients = context.sum().backward();
        values(rows.grad(&gradients).expect("it is read"));
    }
}

/// More tensors end with each graph than wait in a queue.
fn long_graphs() {
    let device = autodiff_device();
    for _ in 0..ROUNDS {
        let start: Tensor<1> = random([8], 2, &device).require_grad();
        let end = (0..200).fold(start.clone(), |rows, _| rows.sin() * 1.5);
        let _ = end.sum().backward();
    }
}

#[test]
fn a_gradient_without_a_kernel_does_not_wait_for_the_end_of_another_graph() {
    let (done, finished) = mpsc::channel();
    for work in [wide_gradients, long_graphs] {
        let done = done.clone();
        thread::spawn(move || {
            work();
            done.send(()).expect("the test waits");
        });
    }
    for _ in 0..2 {
        finished
            .recv_timeout(Duration::from_secs(240))
            .expect("both threads end; none waits for the other");
    }
}
