use std::collections::BTreeSet;

use super::super::make;
use super::*;

const SETTLE: Duration = Duration::from_mins(5);

fn names() -> BTreeSet<String> {
    ["llmwarden-webhook.llmwarden-system.svc", "127.0.0.1"]
        .map(str::to_owned)
        .into()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
}

fn lifetimes() -> Lifetimes {
    Lifetimes::with_settle(SETTLE)
}

fn take(step: Step, stored: Option<Stored>, now: Timestamp) -> Stored {
    make::take(step, stored, &names(), &lifetimes(), now)
        .expect("made")
        .expect("something")
}

fn begun() -> Stored {
    take(Step::Begin, None, at(0))
}

/// The plan for what is stored, trusted since the beginning.
fn planned(stored: &Stored, now: Timestamp) -> (Step, Timestamp) {
    planned_as(stored, now, Some(at(0)), false)
}

fn planned_as(
    stored: &Stored,
    now: Timestamp,
    trusted_since: Option<Timestamp>,
    asked: bool,
) -> (Step, Timestamp) {
    let seen = Seen {
        now,
        stored: Some(stored),
        trusted_since,
        asked,
        names: &names(),
    };
    plan(&seen, &lifetimes())
}

#[test]
fn what_is_not_there_is_made_and_then_left_alone() {
    let nothing = Seen {
        now: at(0),
        stored: None,
        trusted_since: None,
        asked: false,
        names: &names(),
    };
    assert_eq!(plan(&nothing, &lifetimes()).0, Step::Begin);
    let stored = begun();
    assert_eq!(stored.leaf.names, names());
    assert_eq!(stored.leaf.issuer, stored.authorities[0].subject);
    assert_eq!(stored.leaf.made, at(0));
    let (step, next) = planned(&stored, at(1));
    assert_eq!((step, next), (Step::Nothing, at(0) + 60 * DAY));
}

#[test]
fn what_is_stored_is_read_as_it_was_written() {
    let stored = take(Step::AddAuthority, Some(begun()), at(1));
    let read = Stored::parse(&stored.secret("n")).expect("usable");
    assert_eq!(read.authorities, stored.authorities);
    assert_eq!(read.leaf, stored.leaf);
    assert_eq!(read.bundle(), stored.bundle());
    let mut other = begun().secret("n");
    let mut mixed = stored.secret("n");
    for (key, text) in [
        ("tls.key", "no key"),
        ("tls.crt", ""),
        ("ca.crt", "x"),
        ("ca.key", "x"),
    ] {
        let mut broken = stored.secret("n");
        broken
            .data
            .as_mut()
            .expect("data")
            .insert(key.to_owned(), k8s_openapi::ByteString(text.into()));
        assert!(Stored::parse(&broken).is_err(), "{key}");
    }
    // A key of another certificate.
    let key = other.data.as_mut().expect("data").remove("tls.key");
    mixed
        .data
        .as_mut()
        .expect("data")
        .insert("tls.key".to_owned(), key.expect("a key"));
    assert!(Stored::parse(&mixed).is_err());
}

#[test]
fn a_certificate_is_renewed_with_a_third_of_its_life_ahead() {
    let stored = begun();
    let due = at(0) + 60 * DAY;
    assert_eq!(planned(&stored, due - SETTLE).0, Step::Nothing);
    assert_eq!(planned(&stored, due).0, Step::IssueLeaf);
    // Also where nobody has written caBundle: its authority is the one that will be there.
    assert_eq!(planned_as(&stored, due, None, false).0, Step::IssueLeaf);
    let renewed = take(Step::IssueLeaf, Some(stored), due);
    assert_eq!(planned(&renewed, due).0, Step::Nothing);
    assert_eq!(renewed.authorities.len(), 1);
}

#[test]
fn another_name_is_another_certificate() {
    let stored = begun();
    let others = BTreeSet::from(["elsewhere".to_owned()]);
    let seen = Seen {
        now: at(1),
        stored: Some(&stored),
        trusted_since: Some(at(0)),
        asked: false,
        names: &others,
    };
    assert_eq!(plan(&seen, &lifetimes()).0, Step::IssueLeaf);
}

#[test]
fn an_authority_issues_nothing_before_it_is_trusted() {
    let stored = begun();
    assert_eq!(
        planned_as(&stored, at(1), Some(at(0)), true).0,
        Step::AddAuthority
    );
    let two = take(Step::AddAuthority, Some(stored), at(1));
    assert_eq!(two.authorities.len(), 2);
    assert_eq!(two.leaf.issuer, two.authorities[1].subject);
    let settled = at(10) + SETTLE;
    for (trusted_since, now, step) in [
        (None, at(10) + DAY, Step::Nothing),
        (Some(at(10)), at(11), Step::Nothing),
        (Some(at(10)), settled, Step::IssueLeaf),
    ] {
        // Asking again begins nothing anew.
        assert_eq!(
            planned_as(&two, now, trusted_since, true).0,
            step,
            "{trusted_since:?}"
        );
    }
    assert_eq!(planned_as(&two, at(11), Some(at(10)), false).1, settled);
    let issued = take(Step::IssueLeaf, Some(two), settled);
    assert_eq!(issued.leaf.issuer, issued.authorities[0].subject);
    let (step, next) = planned_as(&issued, settled, Some(at(10)), false);
    assert_eq!((step, next), (Step::Nothing, settled + SETTLE));
    let (step, _) = planned_as(&issued, settled + SETTLE, Some(at(10)), false);
    assert_eq!(step, Step::DropOldAuthorities);
    let dropped = take(step, Some(issued), settled + SETTLE);
    assert_eq!(dropped.authorities.len(), 1);
    assert_eq!(dropped.leaf.issuer, dropped.authorities[0].subject);
}

#[test]
fn a_controller_that_comes_back_after_all_has_expired_begins_anew() {
    let stored = begun();
    let late = at(0) + 400 * DAY;
    assert_eq!(planned(&stored, late).0, Step::Begin);
    let anew = take(Step::Begin, Some(stored), late);
    assert_eq!(planned(&anew, late).0, Step::Nothing);
}

/// Three years, in which API servers and replicas take in each change as late as they may: what any replica serves is
/// trusted by any API server at any time.
#[test]
fn what_is_served_is_trusted_at_any_time() {
    struct Change {
        at: Timestamp,
        issuer: String,
        expires: Timestamp,
        trusted: Vec<String>,
    }
    let record = |at, stored: &Stored| Change {
        at,
        issuer: stored.leaf.issuer.clone(),
        expires: stored.leaf.expires,
        trusted: stored.authorities.iter().map(|a| a.subject.clone()).collect(),
    };
    let mut stored = begun();
    let mut changes = vec![record(at(0), &stored)];
    let (mut now, mut trusted_since) = (at(0), at(0));
    let mut steps = Vec::new();
    while now < at(0) + 3 * 365 * DAY {
        let (step, next) = planned_as(&stored, now, Some(trusted_since), false);
        if step == Step::Nothing {
            assert!(next > now, "{next} is not after {now}");
            now = next;
            continue;
        }
        steps.push(step);
        stored = take(step, Some(stored), now);
        if step != Step::IssueLeaf {
            trusted_since = now;
        }
        changes.push(record(now, &stored));
    }
    for (number, present) in changes.iter().enumerate() {
        // What somebody may still go by when this change is made, and until the next one.
        let still = |other: &Change| other.at + SETTLE > present.at;
        let older = changes[..number].iter().rev();
        let before: Vec<&Change> = older
            .take(1)
            .chain(changes[..number].iter().filter(|c| still(c)))
            .collect();
        for other in before {
            assert!(
                other.trusted.contains(&present.issuer),
                "an API server that is late does not trust it"
            );
            assert!(
                present.trusted.contains(&other.issuer),
                "what a replica that is late serves is mistrusted"
            );
        }
        let until = changes.get(number + 1).map_or(now, |next| next.at);
        assert!(present.expires > until, "expired at {}", present.expires);
    }
    let count = |wanted| steps.iter().filter(|step| **step == wanted).count();
    assert_eq!(count(Step::Begin), 0);
    assert!(count(Step::AddAuthority) >= 3, "{steps:?}");
    assert_eq!(count(Step::AddAuthority), count(Step::DropOldAuthorities));
}
