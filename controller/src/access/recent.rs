//! What is remembered for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use jiff::Timestamp;

/// How often it is looked through for what has become old: for each of ten thousand entries that would be too often.
const SWEEP: Duration = Duration::from_mins(1);

/// Entries that are forgotten some time after their last use.
pub struct Recent<K, V> {
    memory: Duration,
    entries: HashMap<K, (V, Timestamp)>,
    swept: Timestamp,
}

impl<K: Eq + Hash, V: Default> Recent<K, V> {
    /// Nothing yet, and room for what was used within `memory`.
    pub fn new(memory: Duration) -> Self {
        Self {
            memory,
            entries: HashMap::new(),
            swept: Timestamp::MIN,
        }
    }

    /// An entry that is not forgotten yet.
    pub fn get(&self, key: &K, now: Timestamp) -> Option<&V> {
        let (value, used) = self.entries.get(key)?;
        (!passed(*used, self.memory, now)).then_some(value)
    }

    /// An entry, which is used now; an empty one if there is none, or an old one.
    pub fn touch(&mut self, key: K, now: Timestamp) -> &mut V {
        if passed(self.swept, SWEEP, now) {
            self.swept = now;
            self.entries
                .retain(|_, (_, used)| !passed(*used, self.memory, now));
        }
        let (value, used) = self.entries.entry(key).or_insert_with(|| (V::default(), now));
        if passed(*used, self.memory, now) {
            *value = V::default();
        }
        *used = now;
        value
    }
}

fn passed(since: Timestamp, time: Duration, now: Timestamp) -> bool {
    since.saturating_add(time).is_ok_and(|end| end <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_last_from_their_last_use() {
        let start = Timestamp::UNIX_EPOCH;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::<_, u32>::new(Duration::from_secs(100));
        *recent.touch("a", at(0)) += 1;
        *recent.touch("b", at(0)) += 1;
        assert_eq!(*recent.touch("a", at(70)), 1);
        // Between two sweeps too.
        assert_eq!(*recent.touch("b", at(101)), 0);
        assert_eq!(recent.get(&"a", at(169)), Some(&1));
        assert_eq!(recent.get(&"a", at(170)), None);
        recent.touch("c", at(230));
        assert_eq!(recent.entries.len(), 1);
    }
}
