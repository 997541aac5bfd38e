//! A JSON patch (RFC 6902) under construction. It speaks of what it changes alone, so whatever else an object holds stays,
//! fields that are newer than this program included.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation};
use serde::Serialize;
use serde_json::{Value, json};

/// Adds at the end of a list.
const END: &str = "-";

/// The operations so far.
#[derive(Debug, Default)]
pub struct Draft(pub Vec<PatchOperation>);

impl Draft {
    /// Adds a member of an object.
    pub fn set(&mut self, path: &[&str], value: Value) {
        self.add(path, value);
    }

    /// Replaces what is there.
    pub fn replace(&mut self, path: &[&str], value: impl Serialize) {
        self.0.push(PatchOperation::Replace(ReplaceOperation {
            path: PointerBuf::from_tokens(path.iter().copied()),
            value: json!(value),
        }));
    }

    /// Removes what is there.
    pub fn remove(&mut self, path: &[&str]) {
        self.0.push(PatchOperation::Remove(RemoveOperation {
            path: PointerBuf::from_tokens(path.iter().copied()),
        }));
    }

    /// Adds at the end of a list, which is made when there is none. `present` is what it holds.
    pub fn append<T: Serialize, P>(&mut self, path: &[&str], present: &[P], more: &[T]) {
        if more.is_empty() {
            return;
        }
        if present.is_empty() {
            return self.add(path, json!(more));
        }
        for item in more {
            self.add(&[path, &[END]].concat(), json!(item));
        }
    }

    /// Adds at the beginning of a list, which is made when there is none.
    pub fn prepend<T: Serialize, P>(&mut self, path: &[&str], present: &[P], first: T) {
        if present.is_empty() {
            self.add(path, json!([first]));
        } else {
            self.add(&[path, &["0"]].concat(), json!(first));
        }
    }

    fn add(&mut self, path: &[&str], value: Value) {
        self.0.push(PatchOperation::Add(AddOperation {
            path: PointerBuf::from_tokens(path.iter().copied()),
            value,
        }));
    }
}
