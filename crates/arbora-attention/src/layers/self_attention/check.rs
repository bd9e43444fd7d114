//! Ranges of settings, and which go together.

use super::baselines::BigBirdConfig;
use super::kind::AttentionKindConfig;
use super::router::{RouterConfig, TreeScope, TreeSharing};
use arbora_tree::routing::Surrogate;
use arbora_tree::{ConfigError, RoutingTreeConfig};

impl AttentionKindConfig {
    /// Checks the settings for a layer with these heads, so that a layer can be made of them. Heads themselves
    /// are not checked.
    ///
    /// # Errors
    /// With the first setting that is out of its range.
    pub fn check(&self, heads: usize, kv_heads: usize) -> Result<(), ConfigError> {
        match self {
            Self::Dense => Ok(()),
            Self::Linformer(linformer) => {
                let max_tokens = ("max_tokens", linformer.max_tokens);
                ConfigError::unless_at_least_1([max_tokens, ("rank", linformer.rank)])
            }
            Self::BigBird(BigBirdConfig { block, window, .. }) => {
                ConfigError::unless_at_least_1([("block", *block)])?;
                let odd = !window.is_multiple_of(2);
                ConfigError::unless(odd, "window", "an odd number", window)
            }
            Self::Performer(performer) => {
                ConfigError::unless_at_least_1([("features", performer.features)])
            }
            Self::TreeFine(tree) => {
                tree.router.check(heads, kv_heads)?;
                ConfigError::unless_dropout(tree.dropout)?;
                let soft = matches!(tree.router.surrogate, Surrogate::Soft { .. });
                let holds = tree.dropout == 0.0 || !soft;
                let expected = "0 with the soft surrogate";
                ConfigError::unless(holds, "dropout", expected, tree.dropout)
            }
            Self::TreeCoarse(tree) => {
                tree.router.check(heads, kv_heads)?;
                let alignment = &tree.router.alignment;
                let expected = "null, since means are not aligned";
                let got = format!("{} rows", alignment.map_or(0, |alignment| alignment.rows));
                ConfigError::unless(alignment.is_none(), "router.alignment", expected, got)
            }
        }
    }
}

impl RouterConfig {
    const MOST_LEAVES: usize = 1 << 16;

    fn check(&self, heads: usize, kv_heads: usize) -> Result<(), ConfigError> {
        let tree = RoutingTreeConfig::new(1, self.branching.clone());
        let tree = tree
            .with_balance_rate(self.balance_rate)
            .with_balance_slack(self.balance_slack);
        ConfigError::in_section("router", tree.check())?;
        let few = self.branching.iter().product::<usize>() <= Self::MOST_LEAVES;
        let got = format!("those of {:?}", self.branching);
        ConfigError::unless(few, "router.branching", "at most 65536 leaves", got)?;
        let is_one_tree = self.scope == TreeScope::PerLayer && self.sharing == TreeSharing::Shared;
        let holds = !is_one_tree || heads == kv_heads;
        let expected = "separate with one tree per layer, where queries have more heads than keys";
        ConfigError::unless(holds, "router.sharing", expected, "shared")?;
        let rows = self.alignment.map_or(1, |alignment| alignment.rows);
        ConfigError::unless_at_least_1([("router.alignment.rows", rows)])?;
        ConfigError::in_section("router.surrogate", self.surrogate.check())
    }
}
