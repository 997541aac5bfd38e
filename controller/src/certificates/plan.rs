//! Decides which step comes next. Pure: a time, what is stored, and what the API server trusts.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::stored::{Certificate, Stored};

/// How long things last.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// An authority.
    pub authority: Duration,
    /// A certificate.
    pub leaf: Duration,
    /// How long API servers and replicas are given to take in a change.
    pub settle: Duration,
}

const DAY: Duration = Duration::from_hours(24);

impl Lifetimes {
    /// The usual ones.
    pub const fn with_settle(settle: Duration) -> Self {
        Self {
            authority: Duration::from_secs(365 * DAY.as_secs()),
            leaf: Duration::from_secs(90 * DAY.as_secs()),
            settle,
        }
    }
}

/// What is to be done to the Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Make an authority and a certificate.
    Begin,
    /// Have another authority trusted beside the present one.
    AddAuthority,
    /// Have the newest authority issue a certificate.
    IssueLeaf,
    /// Stop trusting all but the newest authority.
    DropOldAuthorities,
}

/// What a plan is made from.
pub struct Seen<'a> {
    /// The time.
    pub now: Timestamp,
    /// What is stored; `None` when there is nothing usable.
    pub stored: Option<&'a Stored>,
    /// Since when the API server has been known to trust exactly the stored authorities; `None` when it does not.
    pub trusted_since: Option<Timestamp>,
    /// Whether somebody asked for another authority.
    pub asked: bool,
    /// The names and addresses that the webhook is called by.
    pub names: &'a BTreeSet<String>,
}

/// The step to take now, and when to look again.
pub fn plan(seen: &Seen, lifetimes: &Lifetimes) -> (Step, Timestamp) {
    let now = seen.now;
    let Some(stored) = seen.stored else {
        return (Step::Begin, now);
    };
    let newest = &stored.authorities[0];
    if newest.expires <= now {
        return (Step::Begin, now);
    }
    let leaf = &stored.leaf;
    let issued_by_newest = leaf.issuer == newest.subject;
    let settled = seen.trusted_since.map(|since| since + lifetimes.settle);
    let trusted = settled.is_some_and(|settled| settled <= now);
    let replaced = stored.authorities.len() > 1;

    let outdated = !issued_by_newest || renewal(leaf) <= now || leaf.names != *seen.names;
    // One that the API server does not trust yet would be of no use.
    if outdated && (issued_by_newest || trusted) {
        return (Step::IssueLeaf, now);
    }
    if !replaced && (seen.asked || renewal(newest) <= now) {
        return (Step::AddAuthority, now);
    }
    let all_serve_it = leaf.made + lifetimes.settle;
    if replaced && issued_by_newest && all_serve_it <= now {
        return (Step::DropOldAuthorities, now);
    }
    let mut next = renewal(newest).min(renewal(leaf));
    if replaced && issued_by_newest {
        next = next.min(all_serve_it);
    }
    if let Some(settled) = settled.filter(|_| outdated) {
        next = next.min(settled);
    }
    (Step::Nothing, next)
}

/// With a third of its life still ahead.
fn renewal(certificate: &Certificate) -> Timestamp {
    let life: SignedDuration = certificate.expires.duration_since(certificate.made);
    certificate.expires - life / 3
}

#[cfg(test)]
mod tests;
