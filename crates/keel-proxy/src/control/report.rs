//! What is in flight at instances that drain: the server ends one when nothing is any more.

use keel_route::snapshot::{ClusterId, FromProxy};

use super::Running;

#[derive(Clone, Copy)]
pub enum Report<'a> {
    /// After an acknowledgement: every draining instance, as any may have begun to drain.
    All,
    /// After that of changes of some clusters: those of their instances.
    Of(&'a [ClusterId]),
    /// From time to time: those with something in flight.
    Regular,
    /// Something has reached zero.
    Ended,
}

impl Running {
    pub(super) async fn report_in_flight(&mut self, report: Report<'_>) {
        let frames = self.in_flight(report);
        if !frames.is_empty() {
            self.send(&frames).await;
        }
    }

    /// What is to be reported, and counts as reported then.
    pub(super) fn in_flight(&mut self, report: Report<'_>) -> Vec<FromProxy> {
        if self.server.is_none() {
            return Vec::new();
        }
        let generation = self.registry.generation();
        let mut counts = match report {
            Report::Of(clusters) => self.registry.draining_in(clusters),
            Report::All | Report::Regular | Report::Ended => self.registry.draining(),
        };
        if let Report::Of(_) = report {
            let told = counts.keys().map(|instance| (instance.clone(), generation));
            self.draining_since.extend(told);
        } else {
            self.draining_since.retain(|instance, _| counts.contains_key(instance));
            self.reported.retain(|instance, _| counts.contains_key(instance));
        }
        for (instance, count) in &mut counts {
            let since = *self.draining_since.entry(instance.clone()).or_insert(generation);
            *count += self.elder.as_ref().map_or(0, |elder| elder.in_flight(instance, since));
        }
        let mut frames = Vec::new();
        for (instance, count) in counts {
            let before = self.reported.insert(instance.clone(), count);
            let news = match report {
                Report::All | Report::Of(_) => true,
                Report::Regular => count > 0 || before != Some(0),
                Report::Ended => count == 0 && before != Some(0),
            };
            if news {
                frames.push(FromProxy::InFlight { generation, instance, count });
            }
        }
        frames
    }
}
