//! Which containers become instances, and what is said of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keel_container::compose::{Found, FoundMount, State};
use keel_container::images::ImageFacts;
use keel_model::{
    Adoption, ContainerSpec, HeldPort, Mount, MountSource, Protocol, PublishedPort,
    RestartCondition, RuntimeKind, Scale, ServiceName, Stack, Transport,
};

use super::survey::{Sight, Survey, survey};
use super::{check_root, no_such_project};
use crate::tests::{blank_service, plain_stack};
use crate::world::{StackState, Stored};

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

/// A stack of container services, two of `web`.
fn stack() -> Stack {
    let service = |replicas| {
        let mut service = blank_service();
        service.spec.runtime = RuntimeKind::Container;
        service.spec.image = Some("web:1".to_owned());
        service.spec.container = Some(Box::new(ContainerSpec::default()));
        service.spec.command = Vec::new();
        service.spec.environment = BTreeMap::new();
        service.spec.ports = vec![80];
        service.scale = Scale::Replicated(replicas);
        service
    };
    let services = [("web", 2), ("db", 1), ("job", 1)].map(|(text, n)| (name(text), service(n)));
    plain_stack("shop", services.into(), BTreeMap::new())
}

fn found(service: &str, number: u64, state: State) -> Found {
    Found {
        id: format!("{service}{number}"),
        name: format!("shop_{service}_{number}"),
        service: service.to_owned(),
        number,
        one_off: false,
        state,
        pid: None,
        image: "sha256:old".to_owned(),
        created: format!("2026-01-0{number}"),
        started: None,
        environment: BTreeMap::new(),
        entrypoint: Vec::new(),
        command: Vec::new(),
        mounts: Vec::new(),
        holds: Vec::new(),
        host_network: false,
    }
}

fn sight(found: Vec<Found>) -> Sight {
    let facts = ImageFacts { id: "sha256:old".to_owned(), ..ImageFacts::default() };
    let images = ["web:1", "sha256:old"].map(|name| (name.to_owned(), facts.clone()));
    Sight { found, images: images.into(), listening: BTreeMap::new() }
}

fn look(stack: &Stack, sight: &Sight) -> Survey {
    survey(stack, None, &StackState::default(), sight).unwrap()
}

fn what(survey: &Survey) -> Vec<String> {
    let rows = survey.containers.iter();
    let text = |id: &keel_model::InstanceId| id.to_string();
    rows.map(|row| {
        format!(
            "{}: {}: {}",
            row.container,
            row.instance.as_ref().map_or("-".into(), text),
            row.what
        )
    })
    .collect()
}

#[test]
fn every_container_has_its_line() {
    let mut one_off = found("web", 7, State::Running);
    one_off.one_off = true;
    let all = vec![
        found("web", 1, State::Running),
        found("web", 2, State::Created),
        found("web", 3, State::Paused),
        found("web", 3, State::Running),
        one_off,
        found("job", 1, State::Exited(0)),
        found("db", 1, State::Exited(1)),
        found("old", 1, State::Running),
    ];
    let survey = look(&stack(), &sight(all));
    assert_eq!(
        what(&survey),
        [
            "shop_web_1: shop-web-1: adopted as it runs",
            "shop_web_2: -: left alone: it was never started",
            "shop_web_3: shop-web-3: adopted as it runs",
            "shop_web_3: -: left alone: another container has the same number",
            "shop_web_7: -: left alone: it was made by `docker compose run`",
            "shop_job_1: shop-job-1: adopted, and not run again",
            "shop_db_1: shop-db-1: adopted, and started again as its restart policy says",
            "shop_old_1: -: left alone: the file has no such service",
        ]
    );
    assert_eq!(survey.notes, Vec::<String>::new());
    let container = survey.stack.services["web"].spec.container.as_ref().unwrap();
    assert_eq!(container.image_id.as_deref(), Some("sha256:old"), "pinned to what runs");
    let serials: Vec<u64> = survey.taken.0[&name("web")].keys().copied().collect();
    assert_eq!(serials, [1, 3]);
}

#[test]
fn what_keel_runs_is_left_and_a_second_time_there_is_nothing() {
    let (stack, mut known) = (stack(), StackState::default());
    let adoption = |container: &str| {
        let container = container.to_owned();
        Some(Box::new(Adoption {
            container,
            since: None,
            holds: Vec::new(),
            undeclared: Vec::new(),
        }))
    };
    for (service, adoption) in [("web", adoption("web1")), ("db", None)] {
        let id = keel_model::InstanceId::numbered(&stack.name, &name(service), 1);
        let assignment = keel_model::Assignment {
            id: id.clone(),
            stack: stack.name.clone(),
            service: name(service),
            revision: blank_service().spec.revision(),
            node: keel_model::NodeName::new("here").unwrap(),
            generation: keel_model::Generation(1),
            attempt: 1,
            failures: 0,
            restarts: 0,
            goal: keel_model::Goal::Run,
            reason: String::new(),
            created_at: keel_model::Timestamp(0),
            goal_since: keel_model::Timestamp(0),
            after_drain: keel_model::Goal::Remove,
            adoption,
        };
        let stored =
            Stored { version: keel_store::Version::default(), value: Arc::new(assignment) };
        known.assignments.insert(id, stored);
    }
    let found = vec![found("web", 1, State::Running), found("db", 1, State::Running)];
    let sight = sight(found);
    let seen = survey(&stack, None, &known, &sight).unwrap();
    assert_eq!(
        what(&seen),
        [
            "shop_web_1: -: left alone: taken over before",
            "shop_db_1: -: left alone: keel runs the service already",
        ]
    );
    assert!(seen.taken.is_empty());
    let named = survey(&stack, Some(&[name("db")]), &known, &sight).unwrap_err();
    assert_eq!(named.code, "conflict");
    let unknown = survey(&stack, Some(&[name("wbe")]), &known, &sight).unwrap_err();
    assert_eq!(unknown.hint.as_deref(), Some("did you mean `web`?"));
}

#[test]
fn differences_are_named_without_their_values() {
    let mut stack = stack();
    let web = stack.services.get_mut("web").unwrap();
    web.spec.image = Some("web:2".to_owned());
    web.spec.command = vec!["serve".to_owned()];
    web.spec.container.as_mut().unwrap().entrypoint = Some(vec!["/init".to_owned()]);
    for (key, value) in [("SAME", "1"), ("OTHER", "secret"), ("NEW", "secret"), ("P", "${PORT}")] {
        web.spec.environment.insert(key.to_owned(), value.to_owned());
    }
    let volume = |name: &str| MountSource::Volume { name: name.to_owned(), subpath: None };
    for (source, target) in
        [(volume("shop_a"), "/a"), (volume("shop_b"), "/b"), (MountSource::Anonymous, "/c")]
    {
        web.spec.mounts.push(Mount {
            source,
            target: target.into(),
            read_only: false,
            options: None,
        });
    }
    web.publish.push(PublishedPort {
        ip: None,
        published: Some(8081),
        target: 80,
        transport: Transport::Tcp,
        protocol: Protocol::Auto,
    });
    let mut one = found("web", 1, State::Running);
    let variables = [("SAME", "1"), ("OTHER", "old-secret"), ("PATH", "/bin")];
    one.environment = variables.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let mount =
        |source: &str, target: &str| FoundMount { source: source.into(), target: target.into() };
    one.mounts = vec![mount("shop_a", "/a"), mount("other", "/b"), mount("/srv", "/srv")];
    one.holds = vec![HeldPort { ip: "0.0.0.0".parse().unwrap(), port: 8080, target: 80 }];
    let mut two = one.clone();
    (two.id, two.number) = ("web2".to_owned(), 2);
    let mut all = sight(vec![one, two]);
    all.listening.insert("web1".to_owned(), BTreeSet::from([80, 9090]));
    let survey = look(&stack, &all);
    let notes: Vec<&str> = survey.notes.iter().map(String::as_str).collect();
    assert_eq!(
        notes,
        [
            "web: web:2 is not on this machine by this name; the next `keel up` pulls or builds it",
            "web: the file has another command; applied when its instances are replaced",
            "web: the file has another entrypoint; applied when its instances are replaced",
            "web: the file has environment NEW=…; the container runs without it; applied when its instances are replaced",
            "web: the file has another value of environment OTHER; applied when its instances are replaced",
            "web: the file mounts shop_b at /b, the container has other; applied when its instances are replaced",
            "web: the file mounts /c; the container runs without it; applied when its instances are replaced",
            "web: the container has a mount at /srv that the file does not name; gone when it is replaced",
            "web: the file publishes 8081:80, which the container does not; keel's proxy opens it at once",
            "web: the container publishes 8080:80, which the file does not; closed when it is replaced",
            "web: it listens at 9090 too, which the file does not name: `expose: [9090]` has others reach it there through keel; \
         until it is replaced they go on by the engine's names",
            "db: it has no container; the next `keel up` starts it",
            "job: it has no container; the next `keel up` starts it",
        ]
    );
    assert!(!survey.notes.iter().any(|note| note.contains("secret")));
    assert_eq!(survey.taken.0[&name("web")][&1].undeclared, [9090]);
}

#[test]
fn another_number_of_instances_and_what_is_run_again_is_said() {
    let mut stack = stack();
    stack.services.get_mut("db").unwrap().scale = Scale::Replicated(3);
    stack.services.get_mut("web").unwrap().scale = Scale::Replicated(1);
    stack.services.get_mut("job").unwrap().restart.condition = RestartCondition::Always;
    let all = vec![
        found("web", 1, State::Running),
        found("web", 2, State::Running),
        found("db", 1, State::Running),
        found("job", 1, State::Exited(0)),
    ];
    let survey = look(&stack, &sight(all));
    assert_eq!(
        survey.notes,
        [
            "db: the file wants 3 instances; 2 more start afterwards",
            "web: the file wants 1 instances; 1 of the 2 are stopped afterwards",
        ]
    );
    assert!(what(&survey)[3].ends_with("started again as its restart policy says"));
}

#[test]
fn whose_namespace_is_shared_goes_along() {
    let mut stack = stack();
    let db = stack.services.get_mut("db").unwrap().spec.container.as_mut().unwrap();
    db.network = keel_model::ContainerNetwork::Service(name("web"));
    let all = sight(vec![found("db", 1, State::Running), found("web", 1, State::Running)]);
    assert_eq!(look(&stack, &all).taken.0.len(), 2);
    let alone = survey(&stack, Some(&[name("db")]), &StackState::default(), &all).unwrap_err();
    assert_eq!((alone.code, alone.hint.as_deref()), ("invalid", Some("take over both")));
}

#[test]
fn who_may_not_and_what_is_not_there_is_said() {
    assert!(check_root(true).is_ok());
    let refused = check_root(false).unwrap_err();
    assert_eq!((refused.code, refused.hint.as_deref()), ("not_root", Some("sudo keel adopt")));
    let none = no_such_project(&stack().name, "Docker 28 at unix:///x");
    assert_eq!(none.code, "no_such_project");
    assert_eq!(none.message, "Docker 28 at unix:///x has no container of a Compose project `shop`");
}
