//! Answers of engines that clients of Docker do not understand.

use bollard::errors::Error;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Podman's state between the end of a process and that of its container. Its exit code is known by then.
const STOPPED: &str = "stopped";
const EXITED: &str = "exited";

/// The same answer about one container or several, where Podman calls one stopped with that one exited.
pub(crate) fn understood<T: DeserializeOwned>(answer: Result<T, Error>) -> Result<T, Error> {
    let Err(Error::JsonDataError { contents, .. }) = &answer else { return answer };
    let Ok(mut value) = serde_json::from_str::<Value>(contents) else { return answer };
    match &mut value {
        Value::Array(all) => all.iter_mut().for_each(rename),
        one => rename(one),
    }
    serde_json::from_value(value).or(answer)
}

/// Whether an answer is of one that is between the two.
pub(crate) fn is_between<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(Error::JsonDataError { message, .. }) if message.contains("`stopped`"))
}

fn rename(container: &mut Value) {
    for place in ["/State/Status", "/State"] {
        if let Some(state) = container.pointer_mut(place).filter(|state| **state == STOPPED) {
            *state = EXITED.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary};

    use super::*;

    fn answered<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
        serde_json::from_str(json).map_err(|error| Error::JsonDataError {
            message: error.to_string(),
            contents: json.to_owned(),
            column: 0,
        })
    }

    #[test]
    fn one_that_podman_calls_stopped_has_exited() {
        let one = r#"{"Id": "a", "State": {"Status": "stopped", "ExitCode": 3}}"#;
        let answer = answered::<ContainerInspectResponse>(one);
        assert!(is_between(&answer));
        let state = understood(answer).unwrap().state.unwrap();
        assert_eq!(state.status, Some(ContainerStateStatusEnum::EXITED));
        assert_eq!(state.exit_code, Some(3));
        let list = r#"[{"Id": "a", "State": "stopped"}, {"Id": "b", "State": "running"}]"#;
        let all = understood(answered::<Vec<ContainerSummary>>(list)).unwrap();
        assert_eq!(all.iter().filter_map(|it| it.id.as_deref()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn what_is_not_understood_otherwise_is_an_error() {
        for text in [r#"{"State": {"Status": "odd"}}"#, "{", "3"] {
            let answer = answered::<ContainerInspectResponse>(text);
            assert!(!is_between(&answer));
            assert!(understood(answer).is_err(), "{text}");
        }
    }
}
