//! The process runtime on this machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use keel_model::{
    InstanceId, Limits, LogPolicy, NetworkMode, RuntimeKind, ServiceName, Spec, StackName,
};
use keel_runtime::{Launch, LogQuery, ProcessOptions, ProcessRuntime, Runtime};

fn spec(command: &[&str]) -> Spec {
    Spec {
        runtime: RuntimeKind::Process,
        image: None,
        command: command.iter().map(|s| (*s).to_owned()).collect(),
        environment: BTreeMap::new(),
        working_dir: None,
        user: None,
        groups: vec![],
        mounts: vec![],
        files: vec![],
        limits: Limits::default(),
        health: None,
        network: NetworkMode::Shared,
        hosts: BTreeMap::new(),
        init: false,
        pre_start: vec![],
        post_start: vec![],
        pre_stop: vec![],
        logs: LogPolicy::default(),
        tty: false,
        stdin_open: false,
        labels: BTreeMap::new(),
        ports: vec![80],
    }
}
fn launch(n: u64, command: &[&str]) -> Launch {
    let spec = spec(command);
    let (stack, service) = (StackName::new("t").unwrap(), ServiceName::new("a").unwrap());
    Launch {
        id: InstanceId::numbered(&stack, &service, n),
        stack,
        service,
        revision: spec.revision(),
        attempt: 1,
        spec,
        environment: BTreeMap::new(),
        hosts: vec![],
        nameserver: None,
    }
}
fn runtime(dir: &Path) -> ProcessRuntime {
    ProcessRuntime::new(ProcessOptions::new(dir, env!("CARGO_BIN_EXE_keel-shim-test"))).unwrap()
}

#[tokio::test]
async fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let rt = runtime(dir.path());
    println!("{:?}", rt.capabilities());
    let l = launch(1, &["sh", "-c", "echo port $PORT ${PORT}; echo err >&2; exec sleep 1000"]);
    for _ in 0..3 {
        let t = std::time::Instant::now();
        let s = rt.start(l.clone()).await.unwrap();
        println!("start {:?} {s:?}", t.elapsed());
        let t = std::time::Instant::now();
        let shim =
            std::fs::read_to_string(dir.path().join("instances/t-a-1/running.json")).unwrap();
        let v: serde_json::Value = serde_json::from_str(&shim).unwrap();
        let rss = std::fs::read_to_string(format!("/proc/{}/status", v["shim_pid"])).unwrap();
        println!(
            "{}",
            rss.lines()
                .filter(|l| l.starts_with("Vm") || l.starts_with("Rss"))
                .collect::<Vec<_>>()
                .join(" ")
        );
        let e = rt.stop(&l.id, 15, Duration::from_secs(5)).await.unwrap();
        println!("stop {:?} {e:?}", t.elapsed());
    }
    let mut logs = rt.logs(&l.id, LogQuery::default()).await.unwrap();
    while let Some(line) = logs.recv().await {
        println!("{line:?}");
    }
    rt.remove(&l.id).await.unwrap();
    assert!(rt.seen(&l.id).is_none());
    assert!(!dir.path().join("instances/t-a-1").exists());
    println!("{}", rt.start(launch(2, &["nosuch"])).await.unwrap_err());
    println!("{}", rt.start(launch(2, &["/etc/passwd"])).await.unwrap_err());
}
