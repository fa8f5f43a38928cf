//! The control thread's end of the access log: turns it on and off.

use std::rc::Rc;
use std::sync::Arc;

use keel_route::access_log::AccessLog;

use crate::access::Writer;

/// How the log is kept now, and how it is kept if nobody says.
#[derive(Debug)]
pub struct Switch {
    writer: Rc<Writer>,
    default: Option<AccessLog>,
    in_force: Option<AccessLog>,
}

impl Switch {
    /// Off, until the first state.
    pub fn new(writer: Rc<Writer>, default: Option<AccessLog>) -> Self {
        Self { writer, default, in_force: None }
    }

    /// Does what the state says (`wanted`); how the workers are to log from now on, if that differs.
    pub fn turn(&mut self, wanted: Option<&AccessLog>) -> Option<Option<Arc<AccessLog>>> {
        let wanted = wanted.or(self.default.as_ref());
        if wanted == self.in_force.as_ref() {
            return None;
        }
        self.in_force = wanted.cloned();
        // The file is open before lines come, and closed after the last has.
        if self.in_force.is_some() {
            self.writer.set(self.in_force.as_ref());
        }
        Some(self.in_force.clone().map(Arc::new))
    }

    /// Every worker does what [`Switch::turn`] said.
    pub fn turned(&self) {
        if self.in_force.is_none() {
            self.writer.set(None);
        }
    }

    /// What became of lines so far: written, dropped.
    pub fn counts(&self) -> (u64, u64) {
        self.writer.counts()
    }
}
