//! Views of one endpoint table: DNS, environment variables, host entries.
//!
//! The server hands in a [`Table`]; everything here only shows it. [`DnsServer`] answers for the zone
//! [`ZONE`] and passes other names on; [`environment`] and [`hosts_entries`] are for programs that do not ask a DNS
//! server of ours. Nothing here knows why an endpoint is where it is.

mod environment;
mod forward;
mod respond;
mod server;
mod table;
mod zone;

pub use environment::{environment, hosts_entries};
pub use server::{DnsServer, Error};
pub use table::{InstanceAddress, ServiceNames, Table, ZONE, search_domain, service_domain};
