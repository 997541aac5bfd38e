//! Rotation intervals: a whole number and one unit, `d`, `h` or `m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A rotation interval such as `30d`, `12h` or `45m`: from one minute to 99,999 of a unit, as the CRDs state it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

/// Text that is not an interval.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an interval: write a whole number and a unit, such as 30d, 12h or 45m")]
pub struct InvalidInterval;

impl Interval {
    /// The interval as a duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Interval {
    type Err = InvalidInterval;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, unit) = text
            .split_at_checked(text.len().saturating_sub(1))
            .ok_or(InvalidInterval)?;
        let seconds = match unit {
            "d" => 86_400,
            "h" => 3_600,
            "m" => 60,
            _ => return Err(InvalidInterval),
        };
        let plain = (1..=5).contains(&count.len()) && count.bytes().all(|b| b.is_ascii_digit());
        if !plain || count.starts_with('0') {
            return Err(InvalidInterval);
        }
        let count: u64 = count.parse().map_err(|_| InvalidInterval)?;
        Ok(Self(Duration::from_secs(count * seconds)))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match () {
            () if seconds.is_multiple_of(86_400) => write!(f, "{}d", seconds / 86_400),
            () if seconds.is_multiple_of(3_600) => write!(f, "{}h", seconds / 3_600),
            () => write!(f, "{}m", seconds / 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_crd_accepts() {
        for (text, hours) in [("30d", 720), ("12h", 12), ("720h", 720), ("1440m", 24)] {
            assert_eq!(
                text.parse::<Interval>().expect(text).duration(),
                Duration::from_hours(hours)
            );
        }
        assert_eq!(
            "45m".parse::<Interval>().expect("45m").duration(),
            Duration::from_mins(45)
        );
    }

    #[test]
    fn refuses_what_the_crd_refuses() {
        for text in [
            "7x", "0d", "-1h", "invalid", "", "d", "1", "01h", "+1h", "1.5h", "123456d", "1日", "1 h",
        ] {
            assert_eq!(text.parse::<Interval>(), Err(InvalidInterval), "{text:?}");
        }
    }

    #[test]
    fn shows_the_largest_whole_unit() {
        for (text, shown) in [("720h", "30d"), ("12h", "12h"), ("90m", "90m"), ("60m", "1h")] {
            assert_eq!(text.parse::<Interval>().expect(text).to_string(), shown);
        }
    }
}
