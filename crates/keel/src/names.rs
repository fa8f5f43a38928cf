//! Service names on the command line: `catalog=6`, and the nearest name to a misspelled one.

use std::collections::BTreeMap;

use keel_model::{ServiceName, StackName};
use keel_server::api::client::Client;
use keel_server::api::types::StackView;

use crate::failure::Failure;

/// Most instances that can be asked of one service.
const MAX_REPLICAS: u32 = 10_000;

/// Reads `SERVICE=N`.
///
/// # Errors
/// When `text` has another form.
pub fn parse_scale(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("{text:?} is not of the form SERVICE=NUMBER, such as catalog=3");
    let (name, replicas) = text.split_once('=').ok_or_else(wrong)?;
    let replicas = replicas.parse().map_err(|_| wrong())?;
    if name.is_empty() {
        return Err(wrong());
    }
    if replicas > MAX_REPLICAS {
        return Err(format!(
            "{replicas} instances are more than the {MAX_REPLICAS} that a service can have"
        ));
    }
    Ok((name.to_owned(), replicas))
}

/// The error for a service that does not exist.
pub fn unknown_service(name: &str, stack: &str, known: &[&str]) -> Failure {
    let failure =
        Failure::failed("no_such_service", format!("stack {stack} has no service {name:?}"));
    match nearest(name, known) {
        Some(near) => failure.hint(format!("did you mean {near}?")),
        None if known.is_empty() => failure,
        None => failure.hint(format!("its services are {}", known.join(", "))),
    }
}

/// The name that was most probably meant.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    known
        .iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), *other))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, other)| other)
}

/// Checks names against the services of a stack that runs.
///
/// # Errors
/// When one of them does not exist.
pub fn check(view: &StackView, names: &[String]) -> Result<Vec<ServiceName>, Failure> {
    let known: Vec<&str> = view.services.keys().map(ServiceName::as_str).collect();
    names
        .iter()
        .map(|name| {
            view.services
                .get_key_value(name.as_str())
                .map(|(name, _)| name.clone())
                .ok_or_else(|| unknown_service(name, view.name.as_str(), &known))
        })
        .collect()
}

/// A stack of the server, with names checked against its services.
///
/// # Errors
/// When there is no such stack or service.
pub async fn stack_with(
    client: &Client,
    stack: &StackName,
    names: &[String],
) -> Result<(StackView, Vec<ServiceName>), Failure> {
    let view = client.stack(stack.as_str()).await?;
    let services = check(&view, names)?;
    Ok((view, services))
}

/// `SERVICE=N` pairs as a map.
///
/// # Errors
/// When a name is not valid.
pub fn replicas(pairs: &[(String, u32)]) -> Result<BTreeMap<ServiceName, u32>, Failure> {
    pairs
        .iter()
        .map(|(name, replicas)| {
            ServiceName::new(name.as_str())
                .map(|name| (name, *replicas))
                .map_err(|error| Failure::usage(error.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_arguments_are_checked() {
        assert_eq!(parse_scale("catalog=6").unwrap(), ("catalog".to_owned(), 6));
        for bad in ["catalog", "catalog=", "=3", "catalog=-1", "catalog=x", "catalog=10001"] {
            assert!(parse_scale(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        assert_eq!(nearest("catalgo", &["cart", "catalog"]), Some("catalog"));
        assert_eq!(nearest("zzz", &["cart", "catalog"]), None);
    }
}
