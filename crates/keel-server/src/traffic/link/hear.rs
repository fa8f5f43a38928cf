//! What the proxy says: noted for the rest of the server, and told to people.

use std::sync::Arc;

use keel_model::{EventKind, Generation};
use keel_route::snapshot::{FromProxy, Lacking, ListenerFailure, Notices};

use super::begin::is_other_binary;
use super::{Link, Session, Succession};
use crate::clock;
use crate::traffic::{lacks, notices};

impl Link {
    /// Notes what the proxy says, and tells people what they are to know of it.
    pub(super) fn hear(&self, session: &mut Session, frame: FromProxy) {
        match frame {
            FromProxy::Hello { pid, version } => {
                tracing::info!(pid, version, "linked to the proxy");
                let is_other =
                    self.is_other_engine(&version) || is_other_binary(pid, &self.program);
                self.state.send_modify(|state| {
                    state.begin(pid, clock::now());
                    state.version = version;
                    if !is_other {
                        state.not_taken_over = None;
                    }
                });
                if is_other || self.engine.is_some() {
                    session.held.clear();
                }
                // It has come, whatever it is.
                session.succession.begun.take_if(|begun| begun.pid == pid);
                session.is_other = is_other;
                if is_other {
                    tracing::info!(pid, "the proxy is not what it should be");
                } else {
                    session.succession = Succession::default();
                }
            }
            FromProxy::Ack { generation, failed, lacks } => {
                let is_first = session.acknowledged == Generation::default();
                session.acknowledged = generation;
                if generation >= session.whole {
                    self.shown.send_replace(session.issued);
                }
                // What was said on an earlier connection is nothing that this proxy said.
                if let Some(lacks) = lacks.or_else(|| is_first.then(Vec::new)) {
                    // What one that is to be replaced lacks is no news.
                    if session.is_other {
                        self.state.send_modify(|state| state.lacks = lacks);
                    } else {
                        self.note_lacks(lacks);
                    }
                }
                self.tell_withdrawn(session);
                self.note_failures(&failed);
                session.is_settled &= self.state.borrow().failed == failed;
                self.state.send_modify(|state| {
                    state.acknowledged = generation;
                    state.failed = failed;
                });
                if !session.is_settled && generation >= session.whole {
                    session.is_settled = true;
                    if !session.is_other && self.engine.is_none() {
                        session.held.ask(&self.socket(), self.state.borrow().own().open);
                    }
                }
            }
            FromProxy::InFlight { generation, instance, count } => {
                session.in_flight.insert(instance, (generation, count));
            }
            // The runtime sees an exit and the probes see a hang sooner than anything done here could.
            FromProxy::Refused { instance } => tracing::debug!(%instance, "refused a connection"),
            FromProxy::Stats(mut stats) => {
                self.tell_notices(&std::mem::take(&mut stats.notices));
                let asked = session.questions.pop_front();
                self.state.send_modify(|state| {
                    (state.stats, state.asked) = (Arc::new(stats), asked);
                });
            }
            FromProxy::Place { .. } | FromProxy::Retired => {
                tracing::debug!("a word for a successor went astray");
            }
        }
    }

    fn tell_withdrawn(&self, session: &mut Session) {
        let acknowledged = session.acknowledged;
        let done = session.withdrawn.extract_if(.., |(_, since)| acknowledged >= *since);
        let now = clock::now();
        let world = self.worlds.current();
        for (id, _) in done {
            let exit = self.board.get(&id).and_then(|status| status.exit.clone());
            let after = match exit {
                Some(exit) => format!("{} ms after it ended", now.since(exit.at).as_millis()),
                None => "before it is known how it ended".to_owned(),
            };
            let assignment = world
                .stacks
                .values()
                .find_map(|stack| stack.assignments.get(&id))
                .map(|a| &a.value);
            self.events.add(
                EventKind::EndpointWithdrawn,
                assignment.map(|a| &a.stack),
                assignment.map(|a| &a.service),
                Some(&id),
                format!("out of the load balancer {after}"),
            );
        }
    }

    fn note_lacks(&self, lacks: Vec<Lacking>) {
        let state = self.state.borrow();
        for (stack, message) in lacks::news(&state.lacks, &lacks, state.snapshot.as_deref()) {
            self.events.add(EventKind::EngineLacks, stack.as_ref(), None, None, message);
        }
        drop(state);
        self.state.send_modify(|state| state.lacks = lacks);
    }

    fn tell_notices(&self, told: &Notices) {
        let mut left_out = self.state.borrow().left_out.clone();
        let snapshot = self.state.borrow().snapshot.clone().unwrap_or_default();
        for notice in &told.endpoints {
            let (kind, stack, service, mut message) = notices::event(notice);
            if notices::note(&mut left_out, notice, &snapshot) {
                message.push_str(notices::ALL_LEFT_OUT);
            }
            let (stack, service) = (stack.as_ref(), service.as_ref());
            self.events.add(kind, stack, service, Some(&notice.instance), message);
        }
        self.state.send_if_modified(|state| {
            state.left_out = left_out;
            false
        });
        for refused in &told.refused {
            let (stack, service, message) = notices::refused(refused);
            let kind = EventKind::CallRefused;
            self.events.add(kind, stack.as_ref(), service.as_ref(), None, message);
        }
        for message in &told.engine {
            self.events.add(EventKind::Platform, None, None, None, message.clone());
        }
        if told.lost > 0 {
            let message = format!("{} more endpoints were left out or let in again", told.lost);
            self.events.add(EventKind::EndpointEjected, None, None, None, message);
        }
    }

    fn note_failures(&self, failed: &[ListenerFailure]) {
        let known = self.state.borrow().failed.clone();
        for failure in failed.iter().filter(|failure| !known.contains(failure)) {
            let message = format!("can't listen on {}: {}", failure.bind, failure.reason);
            self.events.add(EventKind::Platform, None, None, None, message);
        }
    }
}
