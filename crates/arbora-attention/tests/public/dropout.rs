//! Which weights dropout drops.

use arbora_attention::Dropout;

#[test]
fn dropout_drops_at_its_rate_in_every_direction() {
    for (rate, seed) in [(0.1, 1), (0.5, 2), (0.9, u64::MAX)] {
        let dropout = Dropout { rate, seed };
        let share = |keeps: &dyn Fn(usize) -> bool| {
            (0..4096).filter(|at| !keeps(*at)).count() as f64 / 4096.0
        };
        // Four standard deviations of 4096 draws.
        let bound = 4.0 * (rate * (1.0 - rate) / 4096.0).sqrt();
        for share in [
            share(&|at| dropout.keeps(at, 1, 2, 3)),
            share(&|at| dropout.keeps(1, at, 2, 3)),
            share(&|at| dropout.keeps(1, 2, at, 3)),
            share(&|at| dropout.keeps(1, 2, 3, at)),
            share(&|at| {
                Dropout {
                    rate,
                    seed: at as u64,
                }
                .keeps(1, 2, 3, 4)
            }),
        ] {
            assert!((share - rate).abs() < bound, "rate {rate}: {share}");
        }
    }
}

#[test]
fn pairs_of_neighbouring_queries_are_dropped_independently() {
    let dropout = Dropout { rate: 0.5, seed: 7 };
    let agree = (0..4096)
        .filter(|key| dropout.keeps(0, 0, 0, *key) == dropout.keeps(0, 0, 1, *key))
        .count();
    assert!((1920..2176).contains(&agree), "{agree}");
}
