//! The table for programs that read no DNS: environment variables and lines of `/etc/hosts`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use keel_model::{Protocol, ServiceName, StackName, Transport};

use crate::table::{ServiceNames, Table, service_domain};

/// Where the other services of the stack are, for `service`: `CART_URL`, `CART_HOST`, `CART_PORT` (the main port)
/// and `CART_PORT_9000` for each further one. Two services whose names give the same variable: the first in
/// order of name has it.
#[must_use]
pub fn environment(
    table: &Table,
    stack: &StackName,
    service: &ServiceName,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let others = table.stacks.get(stack).into_iter().flatten().filter(|(name, _)| *name != service);
    for (name, names) in others {
        let prefix = variable(name.as_str());
        for (suffix, value) in describe(names) {
            variables.entry(format!("{prefix}_{suffix}")).or_insert(value);
        }
    }
    variables
}

/// The names of the stack's services with their virtual addresses: short name, full name, aliases.
#[must_use]
pub fn hosts_entries(table: &Table, stack: &StackName) -> Vec<(IpAddr, String)> {
    let services = || table.stacks.get(stack).into_iter().flatten();
    let mut entries = Vec::new();
    for (name, names) in services() {
        entries.push((names.vip, name.to_string()));
        entries.push((names.vip, service_domain(stack, name.as_str())));
        for alias in &names.aliases {
            let taken = services().any(|(other, _)| other.as_str().eq_ignore_ascii_case(alias));
            if !taken && is_host_name(alias) {
                entries.push((names.vip, alias.clone()));
            }
        }
    }
    entries
}

fn describe(names: &ServiceNames) -> Vec<(String, String)> {
    let mut lines = vec![("HOST".to_owned(), names.vip.to_string())];
    let (Some(main), further) = (names.ports.first(), names.ports.iter().skip(1)) else {
        return lines;
    };
    lines.push(("PORT".to_owned(), main.target.to_string()));
    let scheme = match (main.transport, main.protocol) {
        (Transport::Udp, _) => "udp",
        (Transport::Tcp, Protocol::Tcp) => "tcp",
        (Transport::Tcp, Protocol::Auto | Protocol::Http | Protocol::Http2) => "http",
    };
    let address = SocketAddr::new(names.vip, main.target);
    lines.push(("URL".to_owned(), format!("{scheme}://{address}")));
    lines.extend(further.map(|port| (format!("PORT_{}", port.target), port.target.to_string())));
    lines
}

/// `Web.api-1` → `WEB_API_1`. Variables do not begin with a digit.
fn variable(name: &str) -> String {
    let first_digit = name.starts_with(|c: char| c.is_ascii_digit()).then_some('_');
    let rest = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    first_digit.into_iter().chain(rest).map(|c| c.to_ascii_uppercase()).collect()
}

/// A line of `/etc/hosts` must not be broken by a name.
fn is_host_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::fixture;

    #[test]
    fn variables_name_the_other_services() {
        let stack = StackName::new("shop").unwrap();
        let found = environment(&fixture::table(), &stack, &ServiceName::new("worker").unwrap());
        let found: Vec<_> = found.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            found,
            [
                "CART_HOST=10.77.0.2",
                "CART_PORT=8080",
                "CART_PORT_9000=9000",
                "CART_URL=http://10.77.0.2:8080",
                "DB_HOST=10.77.0.3",
                "DB_PORT=5432",
                "DB_URL=tcp://10.77.0.3:5432",
                "WEB_API_1_HOST=fd77::4",
                "WEB_API_1_PORT=80",
                "WEB_API_1_URL=http://[fd77::4]:80",
            ]
        );
        assert_eq!(variable("2nd-cache"), "_2ND_CACHE");
    }

    #[test]
    fn hosts_have_short_full_and_alias_names() {
        let stack = StackName::new("shop").unwrap();
        let found: Vec<_> = hosts_entries(&fixture::table(), &stack)
            .into_iter()
            .map(|(address, name)| format!("{address} {name}"))
            .collect();
        assert_eq!(
            found,
            [
                "fd77::4 Web.api-1",
                "fd77::4 Web.api-1.shop.keel.internal",
                "10.77.0.2 cart",
                "10.77.0.2 cart.shop.keel.internal",
                "10.77.0.2 basket",
                "10.77.0.3 db",
                "10.77.0.3 db.shop.keel.internal",
                "10.77.0.5 worker",
                "10.77.0.5 worker.shop.keel.internal",
            ]
        );
    }
}
