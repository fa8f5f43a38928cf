//! What a container may use.

use std::collections::BTreeMap;

use bollard::models::{
    DeviceMapping, DeviceRequest, HostConfig, ResourcesBlkioWeightDevice, ResourcesUlimits,
    ThrottleDevice,
};
use keel_model::{ContainerSpec, Limits};

use super::{map, signed, some};

pub(super) fn limit(host: &mut HostConfig, limits: &Limits, container: &ContainerSpec) {
    host.nano_cpus = limits.cpu_milli.map(|milli| signed(milli.saturating_mul(1_000_000)));
    host.cpu_shares = limits.cpu_shares.map(signed);
    host.cpuset_cpus = limits.cpuset.clone();
    host.memory = limits.memory.map(signed);
    host.memory_swap = limits.memory_swap.map(unlimited);
    host.pids_limit = limits.pids.map(unlimited);
    host.oom_score_adj = limits.oom_score_adj.map(i64::from);
    let ulimit = |(name, (soft, hard)): (&String, &(u64, u64))| ResourcesUlimits {
        name: Some(name.clone()),
        soft: Some(unlimited(*soft)),
        hard: Some(unlimited(*hard)),
    };
    host.ulimits = some(&limits.ulimits.iter().map(ulimit).collect::<Vec<_>>());
    let own = &container.resources;
    host.shm_size = container.shm_size.map(signed);
    host.memory_reservation = own.memory_reservation.map(signed);
    host.memory_swappiness = own.swappiness.map(signed);
    host.oom_kill_disable = own.oom_kill_disable.then_some(true);
    host.cpu_realtime_period = own.realtime_period.map(signed);
    host.cpu_realtime_runtime = own.realtime_runtime.map(signed);
    host.blkio_weight = own.io_weight;
    let weight = |(path, weight): (&String, &u16)| ResourcesBlkioWeightDevice {
        path: Some(path.clone()),
        weight: Some(usize::from(*weight)),
    };
    host.blkio_weight_device = some(&own.io_weight_device.iter().map(weight).collect::<Vec<_>>());
    host.blkio_device_read_bps = throttle(&own.read_bytes);
    host.blkio_device_write_bps = throttle(&own.write_bytes);
    host.blkio_device_read_iops = throttle(&own.read_operations);
    host.blkio_device_write_iops = throttle(&own.write_operations);
}

/// The engine writes "no limit" as -1.
fn unlimited(limit: u64) -> i64 {
    i64::try_from(limit).unwrap_or(-1)
}

fn throttle(rates: &BTreeMap<String, u64>) -> Option<Vec<ThrottleDevice>> {
    let device = |(path, rate): (&String, &u64)| ThrottleDevice {
        path: Some(path.clone()),
        rate: Some(signed(*rate)),
    };
    some(&rates.iter().map(device).collect::<Vec<_>>())
}

pub(super) fn devices(host: &mut HostConfig, container: &ContainerSpec) {
    // `vendor/class=name` is a device that the container device interface describes.
    let (described, plain): (Vec<_>, Vec<_>) =
        container.devices.iter().partition(|device| device.source.contains('='));
    let mapping = |device: &&keel_model::Device| DeviceMapping {
        path_on_host: Some(device.source.clone()),
        path_in_container: Some(device.target.clone()),
        cgroup_permissions: Some(device.permissions.clone()),
    };
    host.devices = some(&plain.iter().map(mapping).collect::<Vec<_>>());
    host.device_cgroup_rules = some(&container.device_cgroup_rules);
    let mut requests: Vec<_> = container
        .device_requests
        .iter()
        .map(|request| DeviceRequest {
            driver: Some(request.driver.clone()),
            count: request.count,
            device_ids: some(&request.ids),
            capabilities: Some(vec![request.capabilities.clone()]),
            options: map(&request.options),
        })
        .collect();
    if !described.is_empty() {
        let ids = described.iter().map(|device| device.source.clone()).collect();
        let driver = Some("cdi".to_owned());
        requests.push(DeviceRequest { driver, device_ids: Some(ids), ..Default::default() });
    }
    host.device_requests = some(&requests);
}
