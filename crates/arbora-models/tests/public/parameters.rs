//! Linear models of the size of a tree.

use arbora_models::TreeCoderConfig;
use arbora_models::tree_coder::LeafHead;
use proptest::prelude::*;

prop_compose! {
    fn trees()(
        heads in 1usize..5,
        head_dim in 1usize..20,
        branching in 2usize..4,
        height in 0usize..5,
        blocks in prop::collection::vec(1usize..4, 5),
        d_ff in prop::collection::vec(1usize..200, 5),
        each in prop::bool::ANY,
        own in prop::bool::ANY,
        vocabulary in 10usize..600,
    ) -> TreeCoderConfig {
        let level = |numbers: Vec<usize>| if each { numbers[..=height].to_vec() } else { numbers[..1].to_vec() };
        TreeCoderConfig::new(vocabulary, 32)
            .with_n_heads(heads)
            .with_d_model(heads * head_dim)
            .with_branching(branching)
            .with_height(height)
            .with_blocks(level(blocks))
            .with_d_ff(level(d_ff))
            .with_head(if own { LeafHead::PerLeaf } else { LeafHead::Shared })
    }
}

proptest! {
    #[test]
    fn a_linear_model_of_the_active_path_has_its_parameters_without_selectors(config in trees()) {
        let linear = config.linear_active();
        linear.check().unwrap();
        // A norm, and a linear map with a bias.
        let selector = config.d_model + (config.d_model + 1) * config.branching;
        let selectors = config.height * selector;
        prop_assert_eq!(linear.parameters().total, config.parameters().active - selectors);
        prop_assert_eq!(linear.parameters().active, linear.parameters().total);
        prop_assert_eq!(linear.active_blocks(), config.active_blocks());
        prop_assert_eq!(linear.route_on.prompt(), config.route_on.prompt());
    }

    #[test]
    fn a_linear_model_of_the_whole_tree_has_its_parameters_within_one_percent(config in trees()) {
        let linear = config.linear_total();
        linear.check().unwrap();
        let (got, target) = (linear.parameters().total, config.parameters().total);
        prop_assert!(
            got.abs_diff(target) * 100 <= target,
            "{} for {} at {} of {:?}", got, target, linear.d_model, linear.d_ff
        );
        prop_assert_eq!(linear.active_blocks(), config.active_blocks());
        prop_assert!(linear.d_model >= config.d_model);
    }

    #[test]
    fn a_tree_of_height_0_is_its_own_linear_model(config in trees()) {
        let config = config.linear_active();
        prop_assert_eq!(config.linear_total().to_string(), config.to_string());
        prop_assert_eq!(config.linear_active().to_string(), config.to_string());
    }
}
