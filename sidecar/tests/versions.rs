//! The rule of versions as a property: whatever a source shows, in whatever order, with restarts in between, no older
//! version ever comes back, and none that is newer is missed.

use std::path::Path;

use llmwarden_proto::delivery::Companion;
use llmwarden_proto::names;
use llmwarden_sidecar::files::Directory;
use llmwarden_sidecar::store::{Held, Mode, Seen, Slot, Store};
use proptest::collection::vec;
use proptest::prelude::*;

const ACCESS: &str = "agent";

#[derive(Debug, Clone, Copy)]
enum Event {
    /// The source shows a version: the latest, or an old backup, or that of another controller.
    Shown { version: u64, state: &'static str },
    /// The companion was deleted.
    Nothing,
    /// The source can't be read.
    Problem,
    /// The sidecar ended and started again.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let state = prop_oneof![4 => Just("active"), 2 => Just("withdrawn"), 1 => Just("of the future")];
    prop_oneof![
        6 => (1..12_u64, state).prop_map(|(version, state)| Event::Shown { version, state }),
        1 => Just(Event::Nothing),
        1 => Just(Event::Problem),
        2 => Just(Event::Restart),
    ]
}

fn key(version: u64) -> String {
    format!("sk-test-{version}")
}

fn companion(version: u64, state: &str) -> Companion {
    let document = format!(r#"{{"version":{version},"state":"{state}"}}"#);
    let companion = Companion::parse(|name| match name {
        names::LIVE_JSON => Some(document.clone().into_bytes()),
        _ => Some(key(version).into_bytes()),
    });
    companion.expect("readable")
}

/// A sidecar as it starts on these files.
fn started(dir: &Path) -> (Directory, Store) {
    let directory = Directory::new(dir, ACCESS, Mode::Direct);
    let held = directory.restore();
    let slot = Slot {
        held,
        ..Slot::default()
    };
    (directory, Store::new([(ACCESS.to_owned(), slot)]))
}

proptest! {
    #[test]
    fn no_older_version_ever_comes_back(events in vec(event(), 1..40)) {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut directory, mut store) = started(dir.path());
        let (mut newest, mut shown) = (None, None);
        for event in events {
            match event {
                Event::Shown { version, state } => {
                    shown = shown.max(Some(version));
                    store.observe(ACCESS, Seen::Companion(companion(version, state).into()));
                }
                Event::Nothing => drop(store.observe(ACCESS, Seen::Nothing)),
                Event::Problem => drop(store.observe(ACCESS, Seen::Problem("down".into()))),
                Event::Restart => (directory, store) = started(dir.path()),
            }
            let held = store.get(ACCESS).expect("known").held;
            prop_assert!(held.version() >= newest, "{event:?}: {held}");
            newest = held.version();
            prop_assert_eq!(newest, shown, "{:?}", event);

            directory.ensure(&held).expect("written");
            let file = std::fs::read_to_string(dir.path().join(ACCESS).join(names::API_KEY)).ok();
            let expected = match &held {
                Held::Active(delivered) => Some(key(delivered.version())),
                Held::Pending | Held::Withdrawn(_) => None,
            };
            prop_assert_eq!(file, expected);
        }
    }

    #[test]
    fn a_version_that_was_withdrawn_does_not_come_back(version in 1..100_u64, events in vec(event(), 0..20)) {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut directory, mut store) = started(dir.path());
        store.observe(ACCESS, Seen::Companion(companion(version, "withdrawn").into()));
        directory.ensure(&store.get(ACCESS).expect("known").held).expect("written");
        for event in events {
            match event {
                // At most what was withdrawn.
                Event::Shown { version: older, state } => {
                    let seen = companion(older.min(version), if older < version { state } else { "active" });
                    store.observe(ACCESS, Seen::Companion(seen.into()));
                }
                Event::Nothing => drop(store.observe(ACCESS, Seen::Nothing)),
                Event::Problem => drop(store.observe(ACCESS, Seen::Problem("down".into()))),
                Event::Restart => (directory, store) = started(dir.path()),
            }
            let held = store.get(ACCESS).expect("known").held;
            prop_assert!(matches!(&held, Held::Withdrawn(gone) if gone.version == version && !gone.deleted), "{held}");
            directory.ensure(&held).expect("written");
        }
    }
}
