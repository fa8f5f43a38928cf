//! What every runtime must do, on both engines.

use std::sync::{Arc, Mutex};

use keel_container::ContainerRuntime;
use keel_model::{Attachment, ContainerNetwork, ContainerSpec, Network, RuntimeKind};
use keel_runtime::conformance::{self, Harness, Workload};
use keel_runtime::{Launch, Runtime};

use keel_container::testing::{self, IMAGE, Networks, Running, Which};

/// The network of the stack `t`.
const NETWORK: &str = "t_default";

/// The container runtime on one engine.
pub struct Containers {
    pub engine: Running,
    state: tempfile::TempDir,
    runtime: Mutex<Arc<ContainerRuntime>>,
}

impl Containers {
    pub fn new(engine: Running) -> Self {
        let state = tempfile::tempdir().unwrap();
        let runtime = ContainerRuntime::new(state.path(), engine.engine()).unwrap();
        Self { engine, state, runtime: Mutex::new(Arc::new(runtime)) }
    }

    pub fn get(&self) -> Arc<ContainerRuntime> {
        self.runtime.lock().unwrap().clone()
    }

    /// Where the runtime keeps its state.
    pub fn state(&self) -> &std::path::Path {
        self.state.path()
    }

    /// The first attempt of `t-<service>-1`.
    pub fn launch(&self, service: &str, script: &str) -> Launch {
        let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
        let mut launch = conformance::launch(service, conformance::spec(command));
        self.adapt(&mut launch);
        launch
    }
}

impl Harness for Containers {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.get()
    }

    fn reopen(&self) {
        let runtime = ContainerRuntime::new(self.state.path(), self.engine.engine()).unwrap();
        *self.runtime.lock().unwrap() = Arc::new(runtime);
    }

    fn command(&self, workload: &Workload) -> Vec<String> {
        let script = match workload {
            // The first process of a container gets no signal that it does not ask for.
            Workload::Run => "trap 'exit 143' TERM; sleep 1000 & wait".to_owned(),
            Workload::Exit(code) => format!("exit {code}"),
            Workload::ExitAfter(millis, code) => {
                format!("sleep 0.{millis:03}; exit {code}")
            }
            Workload::Say(lines) => {
                let quoted = lines.iter().map(|line| format!("echo '{line}'\n"));
                format!("{}exec sleep 1000", quoted.collect::<String>())
            }
            Workload::SayEnv(names) => {
                let said = names.iter().map(|name| format!("echo \"${name}\"\n"));
                format!("{}exec sleep 1000", said.collect::<String>())
            }
            Workload::Stubborn => {
                "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done".into()
            }
            Workload::Missing => return vec!["/no/such/program".into()],
            Workload::Forbidden => return vec!["/forbidden".into()],
        };
        ["/bin/sh", "-c", &script].map(String::from).to_vec()
    }

    fn keeps_addresses(&self) -> bool {
        false
    }

    fn tells_addresses(&self) -> bool {
        false
    }

    fn adapt(&self, launch: &mut Launch) {
        let attached = Attachment { network: NETWORK.into(), ..Attachment::default() };
        launch.spec.runtime = RuntimeKind::Container;
        launch.spec.image = Some(IMAGE.into());
        launch.spec.container = Some(Box::new(ContainerSpec {
            network: ContainerNetwork::Attached(vec![attached]),
            ..ContainerSpec::default()
        }));
        if self.engine.which == Which::Podman {
            // Its defaults are more than a machine may allow that is a container itself.
            let most = (1024, 1024);
            launch.spec.limits.ulimits = [("nofile".into(), most), ("nproc".into(), most)].into();
        }
        launch.networks = vec![Network { name: NETWORK.into(), ..Network::default() }];
        launch.revision = launch.spec.revision();
    }
}

#[tokio::test]
async fn docker_conforms() {
    let Some(engine) = testing::start(Which::Docker, Networks::Apart).await else { return };
    conformance::all(&Containers::new(engine)).await;
}

#[tokio::test]
async fn podman_conforms() {
    let Some(engine) = testing::start(Which::Podman, Networks::Apart).await else { return };
    conformance::all(&Containers::new(engine)).await;
}
