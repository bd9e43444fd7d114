//! What types alone do not check.

use super::LanguageConfig;
use crate::families::language::TokenizerSource;
use crate::families::{check_sizes, check_weights};
use anyhow::{Result, anyhow, bail};
use arbora::models::tree_coder::{RouteOn, SelectorGradient};
use arbora::rl::BaselineConfig;

impl LanguageConfig {
    /// Checks what types alone do not.
    ///
    /// # Errors
    /// With the first setting that is out of range.
    pub fn check(&self) -> Result<()> {
        let a = &self.architecture;
        let sizes = [
            ("batch_size", self.batch_size, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
            ("eval_items", self.eval_items, 0),
            ("test_items", self.test_items, 0),
            ("data.window", self.data.window, 2),
            ("architecture.d_model", a.d_model, 1),
            ("architecture.heads", a.heads, 1),
            ("architecture.kv_heads", a.kv_heads, 1),
        ];
        let blocks = a
            .blocks
            .iter()
            .map(|value| ("architecture.blocks", *value, 1));
        let d_ff = a.d_ff.iter().map(|value| ("architecture.d_ff", *value, 1));
        check_sizes(sizes.into_iter().chain(blocks).chain(d_ff))?;
        if let TokenizerSource::Bpe { vocabulary } = self.data.tokenizer {
            check_sizes([("data.tokenizer.vocabulary", vocabulary, 257)])?;
        }
        self.windows()
            .check()
            .map_err(|error| anyhow!("data.{error}"))?;
        self.check_route()?;
        // It knows its settings by short names; a person needs the path to give to --set. The vocabulary that
        // the tokenizer will have does not matter here.
        self.tree(1).check().map_err(|error| {
            let section = if error.setting.starts_with("selector") {
                ""
            } else {
                "architecture."
            };
            anyhow!("{section}{error}")
        })?;
        check_weights([
            ("lambda_attention", self.lambda_attention),
            ("selector.rate", self.selector.rate),
        ])?;
        self.check_policy()?;
        let trainer = &self.trainer;
        trainer.check().map_err(|error| anyhow!("trainer.{error}"))
    }

    /// What selectors read must not be what is predicted, and must leave something to predict.
    fn check_route(&self) -> Result<()> {
        let window = self.data.window;
        match self.architecture.route_on {
            RouteOn::FirstN { tokens } if !(1..window).contains(&tokens) => bail!(
                "architecture.route_on.tokens: expected 1 to below data.window = {window}, got {tokens}"
            ),
            RouteOn::PreviousChunk { tokens } if !(1..=window).contains(&tokens) => bail!(
                "architecture.route_on.tokens: expected 1 to data.window = {window}, got {tokens}"
            ),
            RouteOn::LastToken => bail!(
                "architecture.route_on: last-token reads tokens that a language model must predict; use first-n or previous-chunk"
            ),
            RouteOn::MeanAll => bail!(
                "architecture.route_on: mean-all reads tokens that a language model must predict; use first-n or previous-chunk"
            ),
            _ => Ok(()),
        }
    }

    fn check_policy(&self) -> Result<()> {
        let policy = &self.trainer.policy_gradient;
        policy
            .check()
            .map_err(|error| anyhow!("trainer.policy_gradient.{error}"))?;
        let learns = self.model.learns() && self.selector.gradient == SelectorGradient::Reinforce;
        let needs = match policy.baseline {
            BaselineConfig::LeaveOneOut => "several samples of a route",
            BaselineConfig::SelfCritical => "a second, greedy pass",
            _ => return Ok(()),
        };
        if learns {
            bail!(
                "trainer.policy_gradient.baseline: needs {needs}, which language models do not take; use none, constant, moving_average or batch_mean"
            )
        } else {
            Ok(())
        }
    }
}
