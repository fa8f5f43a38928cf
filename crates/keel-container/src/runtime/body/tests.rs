//! What each part of a spec becomes for the engine.

use keel_model::{Attachment, Device, DeviceRequest, MountOptions, MountSource, UdpPort};
use keel_runtime::conformance::{launch, spec};
use serde_json::{Value, json};

use super::*;

fn made(change: impl FnOnce(&mut Launch, &mut ContainerSpec)) -> Value {
    made_with(Reach::Own, change)
}

fn made_with(reach: Reach, change: impl FnOnce(&mut Launch, &mut ContainerSpec)) -> Value {
    let mut launch = launch("web", spec(vec!["run".into()]));
    launch.spec.image = Some("image:1".into());
    let mut container = ContainerSpec {
        network: ContainerNetwork::Attached(vec![Attachment {
            network: "t_default".into(),
            ..Attachment::default()
        }]),
        ..ContainerSpec::default()
    };
    change(&mut launch, &mut container);
    launch.spec.container = Some(Box::new(container));
    let setting = Setting {
        tag: "tag",
        reach,
        shared: &BTreeMap::from([("service:db".into(), "1234".into())]),
        files: &[PathBuf::from("/staged/0")],
        subpaths: &BTreeMap::new(),
        unnamed: &BTreeMap::from([(PathBuf::from("/unnamed"), "t_web_0".into())]),
    };
    let recipe = recipe(&launch, &setting);
    let mut json = serde_json::to_value(recipe.body).unwrap();
    json["connect"] = json!(recipe.connect.iter().map(|(name, _)| name).collect::<Vec<_>>());
    json
}

fn mount(source: MountSource, target: &str, options: MountOptions) -> keel_model::Mount {
    keel_model::Mount {
        source,
        target: target.into(),
        read_only: false,
        options: Some(Box::new(options)),
    }
}

#[test]
fn the_environment_has_its_layers_and_takes_variables_of_the_image_away() {
    let body = made(|launch, container| {
        launch.environment = [("A".into(), "1".into()), ("B".into(), "1".into())].into();
        launch.spec.environment = [("B".into(), "2".into())].into();
        container.unset = vec!["B".into(), "C".into()];
    });
    let all = body["Env"].as_array().unwrap();
    for wanted in ["B=2", "C", "KEEL_INSTANCE=t-web-1"] {
        assert!(all.contains(&json!(wanted)), "{wanted}: {all:?}");
    }
    assert!(!all.contains(&json!("B")));
    let others = all.iter().filter_map(|it| it.as_str()).filter(|it| !it.starts_with("KEEL_"));
    assert_eq!(others.count(), 2, "nothing that an image might read: {all:?}");
}

#[test]
fn what_is_left_to_the_image_is_not_said() {
    let body = made(|launch, _| launch.spec.command.clear());
    for key in ["Cmd", "Entrypoint", "WorkingDir", "User", "Hostname"] {
        assert!(body.get(key).is_none(), "{key}: {}", body[key]);
    }
    assert_eq!(body["Healthcheck"]["Test"], json!(["NONE"]));
    let body = made(|_, container| container.entrypoint = Some(Vec::new()));
    assert_eq!((&body["Entrypoint"], &body["Cmd"]), (&json!([]), &json!(["run"])));
    let body = made(|_, container| container.image_id = Some("sha256:1".into()));
    assert_eq!(body["Image"], "sha256:1");
}

#[test]
fn the_first_network_is_that_of_requests_and_others_follow() {
    let body = made(|launch, container| {
        let other = Attachment { network: "other".into(), ..Attachment::default() };
        let ContainerNetwork::Attached(all) = &mut container.network else { panic!() };
        all[0].ipv4 = Some([10, 0, 0, 9].into());
        all.push(other);
        launch.hosts = vec![([10, 77, 0, 2].into(), "db".into())];
        launch.nameserver = Some(([10, 77, 0, 1].into(), vec!["t.keel.internal".into()]));
        container.dns_search = vec!["corp".into()];
    });
    let host = &body["HostConfig"];
    assert_eq!(host["NetworkMode"], "t_default");
    let endpoints = &body["NetworkingConfig"]["EndpointsConfig"];
    assert_eq!(endpoints["t_default"]["IPAMConfig"]["IPv4Address"], "10.0.0.9");
    assert_eq!(body["connect"], json!(["other"]));
    assert_eq!(host["ExtraHosts"], json!(["db:10.77.0.2"]));
    assert_eq!(host["Dns"], json!(["10.77.0.1"]));
    assert_eq!(host["DnsSearch"], json!(["t.keel.internal", "corp"]));
}

#[test]
fn shared_namespaces_are_those_of_a_container() {
    let body = made(|_, container| {
        container.network = ContainerNetwork::Service(keel_model::ServiceName::new("db").unwrap());
        container.pid = Some("service:db".into());
        container.ipc = Some("shareable".into());
        container.hostname = Some("mine".into());
    });
    let host = &body["HostConfig"];
    assert_eq!(
        (&host["NetworkMode"], &host["PidMode"]),
        (&json!("container:1234"), &json!("container:1234"))
    );
    assert_eq!(host["IpcMode"], "shareable");
    assert!(body.get("Hostname").is_none(), "the engine refuses one there");
}

#[test]
fn ports_are_opened_on_the_host_only_where_addresses_lead_nowhere() {
    let udp = |container: &mut ContainerSpec| {
        container.publish_udp = vec![UdpPort { ip: None, published: Some(53), target: 5353 }];
    };
    let own = made(|_, container| udp(container));
    assert_eq!(own["HostConfig"]["PortBindings"], json!({"5353/udp": [{"HostPort": "53"}]}));
    let published =
        made_with(Reach::Published([127, 0, 0, 1].into()), |_, container| udp(container));
    let bindings = &published["HostConfig"]["PortBindings"];
    assert_eq!(bindings["80/tcp"], json!([{"HostIp": "127.0.0.1", "HostPort": ""}]));
    assert_eq!(bindings["5353/udp"], json!([{"HostPort": "53"}]));
}

#[test]
fn mounts_of_every_kind() {
    let body = made(|launch, _| {
        let none = MountOptions::default;
        launch.spec.mounts = vec![
            mount(
                MountSource::Volume { name: "v".into(), subpath: None },
                "/v",
                MountOptions { no_copy: true, ..none() },
            ),
            mount(MountSource::Anonymous, "/unnamed", none()),
            mount(
                MountSource::Bind { path: "/host".into(), create: false },
                "/bound",
                MountOptions { propagation: Some("rshared".into()), ..none() },
            ),
            mount(
                MountSource::Bind { path: "/host".into(), create: false },
                "/labelled",
                MountOptions { selinux: Some("Z".into()), ..none() },
            ),
            mount(MountSource::Tmpfs { size: Some(9), mode: Some(0o700) }, "/plain", none()),
            mount(
                MountSource::Tmpfs { size: Some(9), mode: Some(0o700) },
                "/options",
                MountOptions { tmpfs: vec!["noexec".into()], ..none() },
            ),
        ];
        launch.spec.files = vec![keel_model::FileMount {
            name: "s".into(),
            content: keel_model::Content::new(b"x".to_vec()),
            target: "/run/secrets/s".into(),
            uid: None,
            gid: None,
            mode: 0o400,
            secret: true,
        }];
    });
    let host = &body["HostConfig"];
    let found = |target: &str| {
        let mounts = host["Mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["Target"] == target).unwrap_or(&Value::Null)
    };
    assert_eq!((&found("/v")["Type"], &found("/v")["Source"]), (&json!("volume"), &json!("v")));
    assert_eq!(found("/v")["VolumeOptions"]["NoCopy"], true);
    assert_eq!(found("/unnamed")["Source"], "t_web_0");
    assert_eq!(found("/bound")["BindOptions"]["Propagation"], "rshared");
    assert_eq!(host["Binds"], json!(["/host:/labelled:rw,Z"]));
    assert_eq!(found("/plain")["TmpfsOptions"], json!({"SizeBytes": 9, "Mode": 0o700}));
    assert_eq!(host["Tmpfs"], json!({"/options": "noexec,size=9,mode=700"}));
    let secret = found("/run/secrets/s");
    assert_eq!((&secret["Source"], &secret["ReadOnly"]), (&json!("/staged/0"), &json!(true)));
}

#[test]
fn limits_devices_and_rights() {
    let body = made(|launch, container| {
        let limits = &mut launch.spec.limits;
        limits.cpu_milli = Some(1500);
        limits.memory = Some(1 << 20);
        (limits.memory_swap, limits.pids) = (Some(u64::MAX), Some(u64::MAX));
        limits.ulimits = [("nofile".into(), (1, 2)), ("core".into(), (u64::MAX, u64::MAX))].into();
        let device = |source: &str| Device {
            source: source.into(),
            target: source.into(),
            permissions: "rwm".into(),
        };
        container.devices = vec![device("/dev/null"), device("vendor.com/gpu=all")];
        container.device_requests = vec![DeviceRequest {
            count: Some(-1),
            capabilities: vec!["gpu".into()],
            ..DeviceRequest::default()
        }];
        container.security_opt = vec!["systempaths=unconfined".into(), "no-new-privileges".into()];
        container.cap_drop = vec!["ALL".into()];
    });
    let host = &body["HostConfig"];
    assert_eq!(host["NanoCpus"], 1_500_000_000u64);
    assert_eq!((&host["MemorySwap"], &host["PidsLimit"]), (&json!(-1), &json!(-1)));
    let core = json!({"Name": "core", "Soft": -1, "Hard": -1});
    assert_eq!(host["Ulimits"], json!([core, {"Name": "nofile", "Soft": 1, "Hard": 2}]));
    assert_eq!(host["Devices"].as_array().unwrap().len(), 1);
    let requests = host["DeviceRequests"].as_array().unwrap();
    assert_eq!(requests[0]["Capabilities"], json!([["gpu"]]));
    assert_eq!(requests[1]["DeviceIDs"], json!(["vendor.com/gpu=all"]));
    assert_eq!((&host["MaskedPaths"], &host["ReadonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["CapDrop"], json!(["ALL"]));
}

#[test]
fn output_is_rotated_unless_the_file_chooses_a_driver() {
    let log = |change: &dyn Fn(&mut Launch, &mut ContainerSpec)| {
        made(|launch, container| change(launch, container))["HostConfig"]["LogConfig"].clone()
    };
    let usual = log(&|_, _| {});
    assert_eq!((&usual["Type"], &usual["Config"]["max-file"]), (&json!("json-file"), &json!("3")));
    let none = log(&|launch, _| launch.spec.logs.keep = false);
    assert_eq!(none["Type"], "none");
    let syslog = log(&|_, container| container.log_driver = Some("syslog".into()));
    assert_eq!((&syslog["Type"], &syslog["Config"]), (&json!("syslog"), &json!({})));
}
