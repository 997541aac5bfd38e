//! Conditions: set in place, so that nothing changes when nothing changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use llmwarden_proto::provider::whole_seconds;
use llmwarden_proto::reason::{ConditionType, Reason};

/// The status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    Unknown,
}

impl Truth {
    /// The text in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Sets conditions of one object, as seen at one time.
pub struct Setter<'a> {
    /// The object's conditions.
    pub conditions: &'a mut Vec<Condition>,
    /// The object's generation.
    pub generation: Option<i64>,
    /// The time.
    pub now: Timestamp,
}

impl Setter<'_> {
    /// Sets a condition; its time of transition moves only when its status does.
    pub fn set(&mut self, kind: ConditionType, truth: Truth, reason: Reason, message: impl Into<String>) {
        let mut condition = Condition {
            type_: kind.as_str().to_owned(),
            status: truth.as_str().to_owned(),
            reason: reason.as_str().to_owned(),
            message: message.into(),
            observed_generation: self.generation,
            last_transition_time: whole_seconds(self.now),
        };
        if let Some(present) = self.conditions.iter_mut().find(|c| c.type_ == condition.type_) {
            if present.status == condition.status {
                condition.last_transition_time = present.last_transition_time.clone();
            }
            *present = condition;
        } else {
            self.conditions.push(condition);
            // Whichever came first, so that readers find them where they always are.
            self.conditions.sort_by_key(|condition| {
                let known = |kind: &ConditionType| kind.as_str() == condition.type_;
                ConditionType::ALL.iter().position(known)
            });
        }
    }

    /// Removes a condition that no longer says anything.
    pub fn clear(&mut self, kind: ConditionType) {
        self.conditions.retain(|c| c.type_ != kind.as_str());
    }
}

/// The condition of a type.
pub fn find(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == kind.as_str())
}

/// Whether a condition has this status and reason.
pub fn is(conditions: &[Condition], kind: ConditionType, truth: Truth, reason: Reason) -> bool {
    find(conditions, kind).is_some_and(|c| c.status == truth.as_str() && c.reason == reason.as_str())
}
