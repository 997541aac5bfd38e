//! Intervals: what is taken is what the CRDs' pattern takes, and is the same after it was shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmwarden_proto::interval::Interval;

fuzz_target!(|text: &str| {
    let interval = text.parse::<Interval>();
    assert_eq!(interval.is_ok(), fits_pattern(text), "{text:?}");
    if let Ok(interval) = interval {
        assert!(!interval.duration().is_zero());
        assert_eq!(interval.to_string().parse(), Ok(interval), "{text:?}");
    }
});

/// `llmwarden_proto::interval::PATTERN`, by hand.
fn fits_pattern(text: &str) -> bool {
    let Some((unit, count)) = text.as_bytes().split_last() else {
        return false;
    };
    b"dhm".contains(unit)
        && (1..=5).contains(&count.len())
        && count[0] != b'0'
        && count.iter().all(u8::is_ascii_digit)
}
