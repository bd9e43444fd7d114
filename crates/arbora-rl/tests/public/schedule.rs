//! The learning rate by step.

use arbora_rl::schedule::Cosine;

fn cosine(base: f64, warmup_steps: u64, total_steps: u64, final_rate: f64) -> Cosine {
    Cosine {
        base,
        warmup_steps,
        total_steps,
        final_rate,
    }
}

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
}

#[test]
fn falls_from_base_to_final_by_half_a_cosine() {
    let cosine = cosine(2.0, 0, 4, 1.0);
    close(cosine.rate(0), 2.0);
    close(cosine.rate(1), 1.5 + 0.5 * std::f64::consts::FRAC_1_SQRT_2);
    close(cosine.rate(2), 1.5);
    close(cosine.rate(4), 1.0);
    close(cosine.rate(1_000), 1.0);
}

#[test]
fn warms_up_linearly_and_reaches_base_before_it_falls() {
    let cosine = cosine(1.0, 4, 8, 0.0);
    close(cosine.rate(0), 0.25);
    close(cosine.rate(3), 1.0);
    close(cosine.rate(4), 1.0);
    close(cosine.rate(6), 0.5);
}

#[test]
fn a_warm_up_longer_than_the_whole_still_warms_up() {
    let cosine = cosine(1.0, 10, 5, 0.0);
    close(cosine.rate(9), 1.0);
    close(cosine.rate(10), 0.0);
}

#[test]
fn a_negative_or_infinite_rate_is_refused_by_name() {
    let error = cosine(-1.0, 0, 4, 0.0).check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "base: expected a number of at least 0, got -1"
    );
    assert!(cosine(1.0, 0, 4, f64::INFINITY).check().is_err());
}
