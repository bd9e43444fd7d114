//! What several numbers come to, of seeds or of repeats.

use serde::Serialize;

/// A mean with the sample standard deviation, which one number alone does not have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistic {
    pub mean: f64,
    pub sd: Option<f64>,
}

impl Statistic {
    /// `None` of no numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let numbers: Vec<f64> = numbers.into_iter().collect();
        let count = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / count;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        (!numbers.is_empty()).then(|| Self {
            mean,
            sd: (numbers.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
        })
    }

    /// The same mean with its standard error in place of the deviation of a sample of so many numbers.
    pub fn with_error(self, count: usize) -> Self {
        Self {
            sd: self.sd.map(|sd| sd / (count as f64).sqrt()),
            ..self
        }
    }

    /// Of the same numbers, each times `scale`.
    pub fn scaled(self, scale: f64) -> Self {
        Self {
            mean: scale * self.mean,
            sd: self.sd.map(|sd| scale * sd),
        }
    }

    pub fn text(self, digits: usize) -> String {
        format!("{:.digits$}{}", self.mean, self.spread(digits))
    }

    /// With the sign of the mean, also above zero.
    pub fn signed(self, digits: usize) -> String {
        format!("{:+.digits$}{}", self.mean, self.spread(digits))
    }

    fn spread(self, digits: usize) -> String {
        self.sd
            .map_or(String::new(), |sd| format!(" ± {sd:.digits$}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviation_is_that_of_a_sample_and_needs_two_seeds() {
        let two = Statistic::of([1.0, 3.0]).unwrap();
        assert_eq!((two.mean, two.sd), (2.0, Some(2f64.sqrt())));
        assert_eq!(two.text(2), "2.00 ± 1.41");
        assert_eq!(two.scaled(100.0).signed(0), "+200 ± 141");
        assert_eq!(Statistic::of([1.5]).unwrap().text(1), "1.5");
        assert_eq!(Statistic::of([]), None);
    }
}
