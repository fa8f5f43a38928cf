//! What the file calls external has to be there before anything is changed.

use keel_container::Engine;
use keel_container::external::{Absent, absent};
use keel_model::{ServiceName, Stack};

use crate::error::Refusal;

/// Refuses a stack whose external networks or volumes are missing; those of the services that are among `named` (all
/// when absent). An engine that is away can't tell, and tells when something is started.
///
/// # Errors
/// [`Refusal`] with a line for each.
pub async fn check(
    engine: &Engine,
    stack: &Stack,
    named: Option<&[ServiceName]>,
) -> Result<(), Refusal> {
    let concerned = |name: &ServiceName| named.is_none_or(|named| named.contains(name));
    let found = absent(engine, stack, concerned).await.unwrap_or_default();
    refusal(&found).map_or(Ok(()), Err)
}

fn refusal(found: &[Absent]) -> Option<Refusal> {
    let line = |one: &Absent| {
        let Absent { kind, name, service } = one;
        format!("service `{service}`: there is no {kind} {name:?}, which the file calls external")
    };
    let make = |one: &Absent| format!("`docker {} create {}`", one.kind, one.name);
    let lines: Vec<String> = found.iter().map(line).collect();
    let makes: Vec<String> = found.iter().map(make).collect();
    (!found.is_empty()).then(|| {
        let hint = format!("make it with {}, or leave `external` out", makes.join(" and "));
        Refusal::new("invalid", lines.join("\n")).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_that_is_missing_has_its_line_and_its_remedy() {
        assert!(refusal(&[]).is_none());
        let one = |kind, name: &str| Absent {
            kind,
            name: name.to_owned(),
            service: ServiceName::new("web").unwrap(),
        };
        let refusal = refusal(&[one("network", "front"), one("volume", "data")]).unwrap();
        assert_eq!(
            refusal.message,
            "service `web`: there is no network \"front\", which the file calls external\n\
             service `web`: there is no volume \"data\", which the file calls external"
        );
        let hint = "make it with `docker network create front` and `docker volume create data`, or leave `external` out";
        assert_eq!(refusal.hint.as_deref(), Some(hint));
    }
}
