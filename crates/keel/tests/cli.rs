//! The command line without a server: help, `config`, and what is said about wrong input.

mod support;

use std::io::Read as _;
use std::process::Stdio;

use support::Sandbox;

const GOOD: &str = "\
name: demo
services:
  web:
    command: [\"./web\", \"--port\", \"${PORT}\"]
    environment:
      GREETING: ${GREETING:-hello}
    depends_on: [db]
  db:
    command: ./db
    volumes: [\"data:/data\"]
volumes:
  data:
";

fn with(content: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("compose.yaml", content);
    sandbox
}

#[test]
fn help_names_every_command() {
    insta::assert_snapshot!(Sandbox::new().run(&["-h"]).ok());
}

#[test]
fn the_usual_flags_of_docker_compose_are_understood() {
    let sandbox = with(GOOD);
    for line in [
        "up -d --wait --wait-timeout 60 --scale web=3 --force-recreate --remove-orphans -y --help",
        "-f a.yaml -f b.yaml -p x --profile dev --env-file .env --project-directory . up --help",
        "up -f a.yaml --no-deps web --help",
        "down -v --remove-orphans --help",
        "ps -a -q --help",
        "ps --services --filter status=running --help",
        "logs -f --since 10m --until 2026-01-02 -n 10 -t --no-log-prefix --no-color web --help",
        "scale web=3 db=1 --help",
        "rm -s -f -v web --help",
        "exec -T -e A=b -w /tmp --index 2 web --help",
        "run --rm -d -T -e A=b -v ./a:/a -w / -u 1 --name x --entrypoint sh --no-deps --build -P -p 80:80 --help",
        "run -it -l a=b --cap-add X --cap-drop Y --use-aliases --pull always --quiet-pull --help web ls",
        "-p x run --project-name y -p 80 --help",
        "attach --index 2 --no-stdin --detach-keys ctrl-c --sig-proxy=false web --help",
        "cp --index 1 -a -L web:/a - --help",
        "stats --no-stream --format json --no-trunc web --help",
        "volumes -q --format json web --help",
        "events --json --since 1h --help",
        "config --format json --no-interpolate -q -o x --help",
        "port web 80 --help",
        "version --short --help",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let done = sandbox.run(&arguments);
        assert_eq!(done.code, 0, "{line}: {}", done.stderr);
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let sandbox = with(GOOD);
    for line in [
        "nonsense",
        "up --nonsense",
        "scale",
        "scale web",
        "scale web=many",
        "logs --since yesterday",
        "ps --filter colour=red",
        "config --services --images",
        "up --output yaml",
        "--project-name Not/Valid ps",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let done = sandbox.run(&arguments);
        assert_eq!(done.code, 2, "{line}: {}", done.all());
        assert!(done.stdout.is_empty() && !done.stderr.is_empty(), "{line}: {}", done.all());
    }
}

#[test]
fn what_docker_compose_has_and_keel_has_not_is_explained() {
    let sandbox = with(GOOD);
    for (line, needle) in [
        ("compose up -d", "leave out `compose`: keel up -d"),
        ("kill web", "keel stop"),
        ("top", "not in this version"),
        ("up --dry-run", "keel diff"),
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let done = sandbox.run(&arguments);
        assert_eq!(done.code, 2, "{line}: {}", done.all());
        assert!(done.stderr.contains(needle), "{line}: {}", done.all());
        assert!(!done.stderr.contains("similar"), "{line}: {}", done.all());
    }
    let bare = sandbox.run(&[]);
    assert_eq!(bare.code, 2, "{}", bare.all());
    assert!(bare.stderr.contains("Commands:"), "{}", bare.all());
    assert!(!bare.stderr.contains("help-markdown"), "{}", bare.all());
}

#[test]
fn config_prints_the_canonical_document() {
    insta::assert_snapshot!(with(GOOD).run(&["config"]).ok());
}

#[test]
fn a_check_refuses_what_up_would_refuse_and_the_document_is_printed_all_the_same() {
    for (settings, expected) in [
        ("routes: [{host: a.de, entrypoints: nowhere}]", "there is no entrypoint `nowhere`"),
        ("routes: [{host: a.de, port: 9}]", "has no port 9"),
        ("routes: [{host: a.de, tls: {cert: c.pem, key: k.pem}}]", "there is no file"),
        ("routes: [{host: a.de, name: x}, {host: b.de, name: x}]", "is defined at"),
    ] {
        let file = format!(
            "services:\n  web:\n    command: ./web\n    expose: [80]\n    x-keel: {{{settings}}}\n"
        );
        let sandbox = with(&file);
        let checked = sandbox.run(&["config", "-q"]);
        assert_eq!(checked.code, 3, "{settings}: {}", checked.all());
        assert!(checked.stderr.contains(expected), "{settings}: {}", checked.all());
        assert!(checked.stderr.contains("compose.yaml:5:"), "{}", checked.all());
        assert!(sandbox.run(&["config"]).ok().contains("command:"), "{settings}");
    }
}

#[test]
fn a_certificate_that_clients_refuse_is_a_warning_at_its_place() {
    let sandbox = with(
        "services:\n  web:\n    command: ./web\n    expose: [80]\n    x-keel: {routes: [{host: a.de, tls: {cert: c.pem, key: k.pem}}]}\n",
    );
    let write = |name: &str, year: i32| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        sandbox.write("c.pem", &params.self_signed(&key).unwrap().pem());
        sandbox.write("k.pem", &key.serialize_pem());
    };
    let check = || {
        let done = sandbox.run(&["config", "-q"]);
        assert_eq!(done.code, 0, "{}", done.all());
        done.stderr
    };
    write("a.de", 4000);
    assert_eq!(check(), "");
    for (name, year, expected) in
        [("a.de", 2001, "it expired on 2001-01-01"), ("b.de", 4000, "it does not cover a.de")]
    {
        write(name, year);
        let told = check();
        assert!(told.contains(expected) && told.contains("compose.yaml:5:"), "{told}");
    }
    sandbox.write("k.pem", "junk");
    assert!(check().contains("there is no private key in it"));
    sandbox.write("k.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
    assert!(check().contains("does not belong to the certificate"));
}

#[test]
fn config_prints_parts() {
    let sandbox = with(GOOD);
    assert_eq!(sandbox.run(&["config", "--services"]).ok(), "db\nweb\n");
    assert_eq!(sandbox.run(&["config", "--quiet"]).ok(), "");
    let json = sandbox.run(&["config", "--format", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["services"]["web"]["environment"]["GREETING"], "hello");
    let variables = sandbox.run(&["config", "--variables"]).ok();
    assert!(variables.lines().any(|line| line.starts_with("GREETING")), "{variables}");
    sandbox.run(&["config", "-o", "out.yaml"]).ok();
    assert!(sandbox.app().join("out.yaml").exists());
}

#[test]
fn config_reads_standard_input() {
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command(&["-f", "-", "config", "--services"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), GOOD.as_bytes()).unwrap();
    assert_eq!(sandbox.done(child.wait_with_output().unwrap()).ok(), "db\nweb\n");
}

/// Each row: one clear error with its place and what to do, exit code 3, and no server was started.
#[test]
fn wrong_files_are_refused_with_their_place() {
    let rows = [
        ("malformed YAML", "services:\n  web: [1\n"),
        ("unknown key", "services:\n  web:\n    command: ./x\n    helthcheck: {}\n"),
        ("type error", "services:\n  web:\n    command: ./x\n    ports: 80\n"),
        ("required variable", "services:\n  web:\n    command: ${PROGRAM:?say which}\n"),
        (
            "dependency cycle",
            "services:\n  a:\n    command: ./a\n    depends_on: [b]\n  b:\n    command: ./b\n    depends_on: [a]\n",
        ),
        ("missing env file", "services:\n  web:\n    command: ./x\n    env_file: nowhere.env\n"),
        (
            "undefined dependency",
            "services:\n  web:\n    command: ./x\n    depends_on: [bd]\n  db:\n    command: ./db\n",
        ),
    ];
    let mut all = String::new();
    for (name, content) in rows {
        let sandbox = with(content);
        let done = sandbox.run(&["up", "-d"]);
        all.push_str(&format!("## {name}\n{}\n", done.all()));
        assert_eq!(done.code, 3, "{name}: {}", done.all());
        assert!(!sandbox.state_dir().exists(), "{name} started a server");
    }
    insta::assert_snapshot!(all);
}

#[test]
fn an_alias_bomb_is_refused_at_once() {
    let started = std::time::Instant::now();
    let done = with(BOMB).run(&["config"]);
    assert_eq!(done.code, 3, "{}", done.all());
    assert!(done.stderr.contains("compose.yaml:"), "{}", done.all());
    assert!(started.elapsed() < std::time::Duration::from_secs(1));
}

const BOMB: &str = "\
x-a: &a [x, x, x, x, x, x, x, x, x, x]
x-b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]
x-c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b]
x-d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c, *c]
x-e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d, *d]
x-f: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e, *e]
x-g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f, *f]
x-h: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g, *g]
services:
  web:
    command: ./x
    x-i: *h
";

#[test]
fn diagnostics_are_json_when_asked_for() {
    let sandbox = with("services:\n  web:\n    command: ./x\n    helthcheck: {}\n");
    let done = sandbox.run(&["config", "--output", "json"]);
    let line: serde_json::Value = serde_json::from_str(done.stderr.trim()).unwrap();
    assert_eq!((done.code, &line["line"], &line["code"]), (3, &4.into(), &"unknown-key".into()));
}

#[test]
fn without_a_server_commands_say_so() {
    let sandbox = with(GOOD);
    for line in
        ["ps", "ls", "logs", "down", "server status", "server stop", "history", "scale web=2"]
    {
        let arguments: Vec<&str> = line.split(' ').collect();
        let done = sandbox.run(&arguments);
        assert_eq!(done.code, 4, "{line}: {}", done.all());
        assert!(done.stderr.contains("keel up"), "{line}: {}", done.all());
    }
    assert_eq!(sandbox.run(&["version", "--short"]).ok(), concat!(env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_state_directory_that_cannot_be_made_is_an_error() {
    let sandbox = with(GOOD);
    sandbox.write("file", "");
    let done = sandbox.run(&["up", "-d", "--state-dir", "file/state"]);
    assert_eq!(done.code, 4, "{}", done.all());
    assert!(done.stderr.contains("not writable"), "{}", done.all());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let sandbox = Sandbox::new();
    let mut child = sandbox
        .command(&["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let done = sandbox.done(child.wait_with_output().unwrap());
    assert_eq!((done.code, done.stderr.as_str()), (0, ""));
}

/// `KEEL_UPDATE_DOCS=1 cargo test -p keel` writes it anew.
#[test]
fn the_reference_in_docs_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
    let wanted = Sandbox::new().run(&["help-markdown"]).ok();
    if std::env::var_os("KEEL_UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/cli.md is out of date: run KEEL_UPDATE_DOCS=1 cargo test -p keel"
    );
}
