//! What people are shown: summaries of services, and what a new record would change.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should stop")]

mod world;

use std::time::Duration;

use keel_model::{Condition, Content, FileMount, Order, RestartCondition, Service, StackRecord};
use keel_plan::{Change, ChangeKind, Outcome, ServiceState, ServiceSummary, diff, summary};
use world::build::after;
use world::{World, name, record, service};

fn of(world: &World, text: &str) -> ServiceSummary {
    summary(&world.desired, &world.observed)[&name(text)].clone()
}

fn state(world: &World, text: &str) -> (ServiceState, Outcome) {
    let summary = of(world, text);
    (summary.state, summary.outcome())
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_service_starts_and_is_ready() {
    let mut world = World::new(record([("web", service(2, "slow"))]));
    assert_eq!(state(&world, "web"), (ServiceState::Starting, Outcome::Wait));
    world.run(secs(1));
    assert_eq!(state(&world, "web"), (ServiceState::Starting, Outcome::Wait));
    let summary = of(&world, "web");
    assert_eq!((summary.desired, summary.running, summary.ready), (2, 2, 0));
    world.run(secs(5));
    assert_eq!(state(&world, "web"), (ServiceState::Ready, Outcome::Done));
}

#[test]
fn a_change_counts_from_the_moment_it_is_recorded() {
    let mut world = World::new(record([("web", service(2, "good"))]));
    world.run(secs(5));
    world.deploy("web", "crash", 2);
    assert_eq!(state(&world, "web"), (ServiceState::RollingOut, Outcome::Wait));
    world.run(secs(30));
    assert_eq!(state(&world, "web"), (ServiceState::RolledBack, Outcome::Failed));
    let summary = of(&world, "web");
    assert!(summary.reason.contains("exited with code 1"), "{}", summary.reason);
    assert!(world.observed.instances.contains_key(&summary.failed_instance.unwrap()));
    world.change("up", |_| {});
    assert_eq!(state(&world, "web"), (ServiceState::RollingOut, Outcome::Wait));
    world.run(secs(30));
    world.scale("web", 3);
    assert_ne!(of(&world, "web").outcome(), Outcome::Done);
}

#[test]
fn what_is_waited_for_and_what_failed_is_said() {
    let web = after(service(1, "good"), "db", Condition::Healthy);
    let mut world = World::new(record([("db", service(1, "missing")), ("web", web)]));
    world.run(Duration::from_millis(500));
    assert_eq!(of(&world, "web").reason, "waits for db to be healthy");
    assert!(of(&world, "db").reason.contains("program not found"));
    world.run(secs(10));
    assert_eq!(state(&world, "db"), (ServiceState::Failed, Outcome::Failed));
    assert_eq!(state(&world, "web"), (ServiceState::Failed, Outcome::Failed));
    assert!(of(&world, "web").reason.contains("shop-db-1 could not start: program not found"));
}

#[test]
fn a_program_without_a_port_that_exits_at_once_is_no_success() {
    let mut web = service(1, "fail");
    web.spec.ports.clear();
    web.restart.condition = RestartCondition::Never;
    let mut world = World::new(record([("web", web)]));
    world.run(secs(2));
    assert_eq!(state(&world, "web"), (ServiceState::Failed, Outcome::Failed));
    assert_eq!(of(&world, "web").failed_instance.unwrap().as_str(), "shop-web-1");
}

#[test]
fn stopping_completing_and_degrading_are_told_apart() {
    let mut world = World::new(record([("web", service(2, "good")), ("once", service(1, "done"))]));
    world.run(secs(5));
    assert_eq!(state(&world, "once"), (ServiceState::Completed, Outcome::Done));
    let victim = world.slots("web")[0].assignment.id.clone();
    world.kill(&victim);
    assert_eq!(state(&world, "web"), (ServiceState::Degraded, Outcome::Wait));
    world.run(secs(5));
    world.stop("web", true);
    assert_eq!(state(&world, "web"), (ServiceState::Stopped, Outcome::Wait));
    world.run(secs(10));
    assert_eq!(state(&world, "web"), (ServiceState::Stopped, Outcome::Done));
    world.down();
    assert_eq!(state(&world, "web"), (ServiceState::Removing, Outcome::Wait));
}

/// What changes when `edit` is made to a record with one service, `web`.
fn change(edit: impl FnOnce(&mut Service)) -> Option<Change> {
    let old = record([("web", service(2, "good"))]);
    let mut new = old.clone();
    edit(new.stack.services.get_mut(&name("web")).unwrap());
    diff(Some(&old), &new).into_iter().next()
}

fn lines(change: &Change) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let line = |f: &keel_plan::FieldChange| {
        format!("{}: {} > {}", f.path, text(&f.before), text(&f.after))
    };
    change.fields.iter().map(line).collect()
}

#[test]
fn new_and_old_services_and_scales_are_told_apart() {
    let old = record([("gone", service(1, "good")), ("same", service(1, "good"))]);
    let new = record([("same", service(1, "good")), ("new", service(1, "good"))]);
    let kinds = |changes: &[Change]| -> Vec<(String, ChangeKind)> {
        changes.iter().map(|c| (c.service.to_string(), c.kind)).collect()
    };
    assert_eq!(
        kinds(&diff(Some(&old), &new)),
        [("gone".to_owned(), ChangeKind::Remove), ("new".to_owned(), ChangeKind::Create)]
    );
    assert_eq!(kinds(&diff(None, &new)).len(), 2);
    let removing = StackRecord { removing: true, ..new.clone() };
    assert!(diff(Some(&new), &removing).iter().all(|c| c.kind == ChangeKind::Remove));
    assert_eq!(change(|_| {}), None);

    let scaled = change(|s| s.scale = keel_model::Scale::Replicated(5)).unwrap();
    assert_eq!(scaled.kind, ChangeKind::Scale);
    assert_eq!(lines(&scaled), ["scale: 2 > 5"]);
    assert_eq!(scaled.replaces, None);
}

#[test]
fn settings_change_in_place_and_specs_replace_instances() {
    let settings = change(|s| s.rollout.delay = secs(3)).unwrap();
    assert_eq!(lines(&settings), ["rollout.delay: 0s > 3s"]);
    assert_eq!(settings.replaces, None);

    let spec = change(|s| s.spec.command = vec!["other".to_owned(), "x".to_owned()]).unwrap();
    assert_eq!(lines(&spec), [r#"command: ["program"] > ["other","x"]"#]);
    assert_eq!(spec.replaces, Some(Order::StartFirst));
    assert_ne!(spec.from, spec.to);
}

fn route(host: &str) -> keel_model::Route {
    keel_model::Route {
        name: "web".to_owned(),
        entrypoints: vec!["web".to_owned()],
        rule: keel_model::Rule::Host(host.to_owned()),
        priority: None,
        kind: keel_model::RouteKind::Http,
        port: None,
        split: Vec::new(),
        tls: None,
        filters: keel_model::Filters::default(),
        timeout: None,
    }
}

#[test]
fn routes_and_traffic_change_in_place() {
    let added = change(|s| s.routes.push(route("a.de"))).unwrap();
    assert_eq!(added.replaces, None);
    assert!(lines(&added).contains(&"routes.web.rule: - > Host(`a.de`)".to_owned()), "{added:?}");

    let mut old = record([("web", service(2, "good"))]);
    let web = old.stack.services.get_mut(&name("web")).unwrap();
    web.routes.push(route("a.de"));
    web.labels.insert("traefik.http.routers.web.rule".to_owned(), "Host(`a.de`)".to_owned());
    let entrypoint: keel_model::Entrypoint =
        serde_json::from_value(serde_json::json!({"bind": "0.0.0.0:80", "tls": false})).unwrap();
    old.stack.entrypoints.insert("web".to_owned(), entrypoint.clone());
    let mut new = old.clone();
    let bind = "0.0.0.0:8080".parse().unwrap();
    new.stack.entrypoints.insert("web".to_owned(), keel_model::Entrypoint { bind, ..entrypoint });
    let web = new.stack.services.get_mut(&name("web")).unwrap();
    web.routes[0].rule = keel_model::Rule::Host("b.de".to_owned());
    web.routes[0].timeout = Some(secs(3));
    web.routes[0].filters.basic_auth = Some(keel_model::BasicAuth {
        realm: "me".to_owned(),
        users: vec!["ann:$apr1$x$y".to_owned()],
        user_header: None,
        remove_header: false,
    });
    web.traffic.timeouts.connect = Duration::from_millis(500);
    web.labels.insert("team".to_owned(), "x".to_owned());
    web.labels.insert("traefik.http.routers.web.rule".to_owned(), "Host(`b.de`)".to_owned());
    let change = diff(Some(&old), &new).remove(0);
    assert_eq!(change.replaces, None);
    assert_eq!(
        lines(&change),
        [
            "deploy.labels.team: - > x",
            "entrypoints.web.bind: 0.0.0.0:80 > 0.0.0.0:8080",
            "routes.web.basic_auth.realm: - > me",
            "routes.web.basic_auth.remove_header: - > false",
            r#"routes.web.basic_auth.users: - > ["(hidden)"]"#,
            "routes.web.rule: Host(`a.de`) > Host(`b.de`)",
            "routes.web.timeout: - > 3s",
            "traffic.timeouts.connect: 1s > 500ms",
        ]
    );
}

#[test]
fn nothing_secret_is_shown() {
    let file = |text: &str| FileMount {
        name: "cert".to_owned(),
        content: Content::new(text.as_bytes().to_vec()),
        target: "/run/secrets/cert".into(),
        uid: None,
        gid: None,
        mode: 0o400,
        secret: true,
    };
    let mut old = record([("web", service(2, "good"))]);
    old.stack.services.get_mut(&name("web")).unwrap().spec.files.push(file("old-content"));
    let mut new = old.clone();
    let spec = &mut new.stack.services.get_mut(&name("web")).unwrap().spec;
    spec.files = vec![file("new-content")];
    spec.environment.insert("DB_PASSWORD".to_owned(), "hunter2".to_owned());
    spec.environment.insert("URL".to_owned(), "postgres://me:hunter2@db/x".to_owned());
    spec.command = vec!["run".to_owned(), "--token".to_owned(), "hunter2".to_owned()];
    let change = diff(Some(&old), &new).remove(0);
    assert_eq!(
        lines(&change),
        [
            r#"command: ["program"] > ["run","--token","(hidden)"]"#,
            "environment.DB_PASSWORD: - > (hidden)",
            "environment.URL: - > postgres://(hidden)@db/x",
            "files.cert.content: (hidden) > (hidden), changed",
        ]
    );
}

#[test]
fn an_entrypoint_that_only_redirects_is_part_of_what_it_leads_to() {
    let mut old = record([("web", service(2, "good"))]);
    old.stack
        .services
        .get_mut(&name("web"))
        .unwrap()
        .routes
        .push(keel_model::Route { entrypoints: vec!["websecure".to_owned()], ..route("a.de") });
    let entrypoint = |bind: &str, to: Option<&str>| -> keel_model::Entrypoint {
        let value = serde_json::json!({"bind": bind, "tls": to.is_none(), "redirect_to": to});
        serde_json::from_value(value).unwrap()
    };
    old.stack.entrypoints.insert("websecure".to_owned(), entrypoint("0.0.0.0:443", None));
    let mut new = old.clone();
    new.stack.entrypoints.insert("web".to_owned(), entrypoint("0.0.0.0:80", Some("websecure")));
    assert_eq!(diff(Some(&old), &old), []);
    let change = diff(Some(&old), &new).remove(0);
    assert_eq!(change.replaces, None);
    assert!(
        lines(&change).contains(&"entrypoints.web.redirect_to: - > websecure".to_owned()),
        "{change:?}"
    );
    assert!(!diff(Some(&new), &old).is_empty());
}
