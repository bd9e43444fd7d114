//! What a run changes in the settings of attention.

use arbora::attention::{AttentionKindConfig, TreeCoarseConfig, TreeFineConfig};
use arbora::rl::seed::{Purpose, derive};

/// The same with seeds of a run, and without the losses of trees that the run does not read.
///
/// - balances: whether it reads the loss against skewed trees
/// - aligns: whether it reads the loss that aligns routes with dense attention
pub fn of_run(
    mut kind: AttentionKindConfig,
    run_seed: u64,
    balances: bool,
    aligns: bool,
) -> AttentionKindConfig {
    use AttentionKindConfig::{BigBird, Dense, Linformer, Performer, TreeCoarse, TreeFine};
    let seed = derive(run_seed, Purpose::Parameters);
    match &mut kind {
        TreeFine(TreeFineConfig { router, .. }) | TreeCoarse(TreeCoarseConfig { router, .. }) => {
            router.seed = router.seed.wrapping_add(seed);
            router.balance_loss = balances;
            router.alignment = router.alignment.filter(|_| aligns);
        }
        BigBird(big_bird) => big_bird.seed = big_bird.seed.wrapping_add(seed),
        Performer(performer) => performer.seed = performer.seed.wrapping_add(seed),
        Dense | Linformer(_) => {}
    }
    kind
}
