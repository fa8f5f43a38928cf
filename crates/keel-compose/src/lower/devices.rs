//! Devices of the host, devices that a driver provides, and the resource settings that only containers have.

use std::collections::BTreeMap;

use keel_model::{ContainerResources, Device, DeviceRequest};

use super::Lower;
use super::container::text;
use super::limits::whole;
use super::spec::{is_true, texts};
use crate::diagnostic::Code;
use crate::value::Node;

/// What a device of `gpus` must be able to do, besides what the file says.
const GPU: &str = "gpu";

/// Least and most weight of block I/O; 0 leaves it to the engine.
const IO_WEIGHT: std::ops::RangeInclusive<u64> = 10..=1000;

impl Lower<'_> {
    pub(super) fn devices(service: &Node) -> Vec<Device> {
        let items = service.get("devices").map(Node::items).unwrap_or_default();
        let devices = items.iter().filter_map(|item| {
            let source = text(item, "source")?;
            let target = text(item, "target").unwrap_or_else(|| source.clone());
            let permissions = text(item, "permissions").unwrap_or_else(|| "rwm".to_owned());
            Some(Device { source, target, permissions })
        });
        devices.collect()
    }

    pub(super) fn device_requests(&mut self, service: &Node) -> Vec<DeviceRequest> {
        let reserved = service.at(&["deploy", "resources", "reservations", "devices"]);
        let mut requests = Vec::new();
        for item in reserved.map(Node::items).unwrap_or_default() {
            requests.push(self.device_request(item));
        }
        for item in service.get("gpus").map(Node::items).unwrap_or_default() {
            let mut request = self.device_request(item);
            if !request.capabilities.iter().any(|capability| capability == GPU) {
                request.capabilities.push(GPU.to_owned());
            }
            requests.push(request);
        }
        requests
    }

    fn device_request(&mut self, item: &Node) -> DeviceRequest {
        let ids = texts(item.get("device_ids"));
        let count = item.get("count").filter(|count| !count.is_null() && ids.is_empty());
        let count = count.and_then(|count| match count.as_str() {
            Some(word) if word.eq_ignore_ascii_case("all") => Some(-1),
            #[allow(clippy::cast_possible_truncation)] // A float cast saturates.
            _ => self.number(Some(count)).map(|count| count as i64),
        });
        DeviceRequest {
            driver: text(item, "driver").unwrap_or_default(),
            count,
            ids,
            capabilities: texts(item.get("capabilities")),
            options: self.labels(item.get("options")),
        }
    }

    pub(super) fn container_resources(&mut self, service: &Node) -> ContainerResources {
        let reserved = service.at(&["deploy", "resources", "reservations", "memory"]);
        let reservation =
            service.get("mem_reservation").filter(|node| !node.is_null()).or(reserved);
        let io = service.get("blkio_config");
        let of = |key: &str| io.and_then(|io| io.get(key));
        ContainerResources {
            memory_reservation: self.bytes(reservation),
            swappiness: self.swappiness(service.get("mem_swappiness")),
            oom_kill_disable: is_true(service.get("oom_kill_disable")),
            realtime_period: self.amount(service.get("cpu_rt_period")),
            realtime_runtime: self.amount(service.get("cpu_rt_runtime")),
            io_weight: self.io_weight(of("weight")),
            io_weight_device: self
                .per_device(of("weight_device"), |lower, item| lower.io_weight(item.get("weight"))),
            read_bytes: self.rates(of("device_read_bps")),
            write_bytes: self.rates(of("device_write_bps")),
            read_operations: self.rates(of("device_read_iops")),
            write_operations: self.rates(of("device_write_iops")),
        }
    }

    /// A positive whole number.
    fn amount(&mut self, node: Option<&Node>) -> Option<u64> {
        self.number(node).filter(|number| *number > 0.0).map(whole)
    }

    fn swappiness(&mut self, node: Option<&Node>) -> Option<u64> {
        let node = node.filter(|node| !node.is_null())?;
        let value = self.number(Some(node))?;
        if value < 0.0 {
            return None;
        }
        if value > 100.0 {
            let message = format!("`mem_swappiness` must be from 0 to 100, not {value}");
            self.error(Code::InvalidValue, &node.span, message, "write for example 10");
            return None;
        }
        Some(whole(value))
    }

    fn io_weight(&mut self, node: Option<&Node>) -> Option<u16> {
        let node = node?;
        let weight = self.amount(Some(node))?;
        if !IO_WEIGHT.contains(&weight) {
            let message = format!("the weight of block I/O must be from 10 to 1000, not {weight}");
            self.error(Code::InvalidValue, &node.span, message, "write for example 500");
            return None;
        }
        u16::try_from(weight).ok()
    }

    fn rates(&mut self, node: Option<&Node>) -> BTreeMap<String, u64> {
        self.per_device(node, |lower, item| lower.bytes(item.get("rate")))
    }

    /// What a list says of each device.
    fn per_device<T>(
        &mut self,
        node: Option<&Node>,
        mut value: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let items = node.map(Node::items).unwrap_or_default().iter();
        items.filter_map(|item| Some((text(item, "path")?, value(self, item)?))).collect()
    }
}
