//! Why settings are refused.

/// A setting that is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The setting, as it is written in a configuration; parts of a path are separated by dots.
    pub setting: String,
    /// Expected values.
    pub expected: String,
    /// The given value.
    pub got: String,
}

impl ConfigError {
    /// The error of a setting with a value that it may not have.
    pub fn new(setting: &str, expected: &str, got: impl ToString) -> Self {
        Self {
            setting: setting.into(),
            expected: expected.into(),
            got: got.to_string(),
        }
    }

    /// What `check` of a part says, with the name of the section before its setting.
    pub fn in_section(section: &str, checked: Result<(), Self>) -> Result<(), Self> {
        checked.map_err(|error| Self {
            setting: format!("{section}.{}", error.setting),
            ..error
        })
    }

    /// Refuses a setting unless `holds`.
    pub fn unless(
        holds: bool,
        setting: &str,
        expected: &str,
        got: impl ToString,
    ) -> Result<(), Self> {
        let refused = || Self::new(setting, expected, got);
        holds.then_some(()).ok_or_else(refused)
    }

    /// Refuses the first of some sizes that is 0.
    pub fn unless_at_least_1<const N: usize>(sizes: [(&str, usize); N]) -> Result<(), Self> {
        let zero = sizes.into_iter().find(|(_, size)| *size == 0);
        zero.map_or(Ok(()), |(setting, _)| {
            Err(Self::new(setting, "at least 1", 0))
        })
    }

    /// Refuses a number that is below 0, or infinite or NaN.
    pub fn unless_at_least_0(setting: &str, got: f64) -> Result<(), Self> {
        let holds = got.is_finite() && got >= 0.0;
        Self::unless(holds, setting, "a number of at least 0", got)
    }

    /// Refuses a number that is not above 0, or infinite or NaN.
    pub fn unless_positive(setting: &str, got: f64) -> Result<(), Self> {
        let positive = got.is_finite() && got > 0.0;
        Self::unless(positive, setting, "a positive number", got)
    }

    /// Refuses a setting that does not divide another.
    pub fn unless_divisor(setting: &str, got: usize, whole: usize) -> Result<(), Self> {
        let divides = got > 0 && whole.is_multiple_of(got);
        Self::unless(divides, setting, &format!("a divisor of {whole}"), got)
    }

    /// Refuses a probability of dropout that is not 0 to below 1.
    pub fn unless_dropout(got: f64) -> Result<(), Self> {
        Self::unless((0.0..1.0).contains(&got), "dropout", "0 to below 1", got)
    }

    /// Ends `init` of a configuration that its `check` refuses.
    ///
    /// # Panics
    /// With the name of what is initialised and the error, if there is one.
    #[track_caller]
    pub fn expect_ok(name: &str, checked: Result<(), Self>) {
        if let Err(error) = checked {
            panic!("{name}: {error}");
        }
    }
}
