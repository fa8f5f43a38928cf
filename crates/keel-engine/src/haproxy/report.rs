//! What a worker of HAProxy says about itself (`show stat`), and what it has to be told so that its servers are the
//! endpoints that there are. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use keel_route::snapshot::ClusterStats;

/// A server of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub backend: String,
    pub name: String,
    pub address: SocketAddr,
    /// Takes new requests.
    pub open: bool,
    /// Requests and connections that it has or that wait for it.
    pub in_flight: u64,
}

/// What a worker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In order.
    pub servers: Vec<Server>,
    /// By backend.
    pub numbers: BTreeMap<String, ClusterStats>,
}

impl Report {
    /// Reads the answer to `show stat`; `None` if it is none.
    pub fn parse(csv: &str) -> Option<Self> {
        let mut lines = csv.lines();
        let header = lines.find_map(|line| line.strip_prefix("# "))?;
        let columns: BTreeMap<&str, usize> =
            header.split(',').enumerate().map(|(at, name)| (name, at)).collect();
        let mut report = Self::default();
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let fields: Vec<&str> = line.split(',').collect();
            let text = |name: &str| columns.get(name).and_then(|at| fields.get(*at)).copied();
            let number = |name: &str| text(name).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
            let backend = text("pxname")?.to_owned();
            match text("svname")? {
                "BACKEND" => {
                    let requests = number("stot");
                    let numbers = ClusterStats {
                        requests,
                        failed: number("econ") + number("eresp"),
                        server_errors: number("hrsp_5xx"),
                        retries: number("wretr") + number("wredis"),
                        held: 0,
                        in_flight: number("scur"),
                        // Only the mean over the last 1024 is known.
                        total_us: number("ttime").saturating_mul(1000).saturating_mul(requests),
                        ..ClusterStats::default()
                    };
                    report.numbers.insert(backend, numbers);
                }
                "FRONTEND" => {}
                name => {
                    // Sockets between frontends of ours have no address.
                    let Some(address) = text("addr").and_then(|at| at.parse().ok()) else {
                        continue;
                    };
                    report.servers.push(Server {
                        backend,
                        name: name.to_owned(),
                        address,
                        open: !text("status")?.starts_with("MAINT"),
                        in_flight: number("scur") + number("qcur"),
                    });
                }
            }
        }
        Some(report)
    }

    /// What is in flight at each address.
    pub fn in_flight(&self, address: SocketAddr) -> u64 {
        let there = self.servers.iter().filter(|server| server.address == address);
        there.map(|server| server.in_flight).sum()
    }

    /// The commands after which the servers of `backend` are these endpoints, of which those with `true` take new
    /// requests; `None` if there are not enough servers.
    pub fn changes(&self, backend: &str, wanted: &[(SocketAddr, bool)]) -> Option<Vec<String>> {
        let servers: Vec<&Server> =
            self.servers.iter().filter(|server| server.backend == backend).collect();
        let (mut opening, mut closing) = (Vec::new(), Vec::new());
        let mut used = BTreeSet::new();
        let mut new = Vec::new();
        for (address, open) in wanted {
            let has =
                |server: &&&Server| server.address == *address && !used.contains(&server.name);
            match servers.iter().find(has) {
                Some(server) => {
                    used.insert(server.name.clone());
                    if server.open != *open {
                        let commands = if *open { &mut opening } else { &mut closing };
                        commands.push(state(server, *open));
                    }
                }
                None => new.push((address, *open)),
            }
        }
        // Closed ones first, and of those that have nothing in flight: what is in flight is counted by address.
        let mut free: Vec<&&Server> =
            servers.iter().filter(|server| !used.contains(&server.name)).collect();
        free.sort_by_key(|server| (server.open, server.in_flight));
        let mut free = free.into_iter();
        for (address, open) in new {
            let server = free.next()?;
            if server.open {
                opening.push(state(server, false));
            }
            let (ip, port) = (address.ip(), address.port());
            opening.push(format!("set server {backend}/{} addr {ip} port {port}", server.name));
            if open {
                opening.push(state(server, true));
            }
        }
        closing.extend(free.filter(|server| server.open).map(|server| state(server, false)));
        // New ones before old ones go: at no time is there none.
        let mut commands = opening;
        commands.append(&mut closing);
        Some(commands)
    }

    /// The commands after which no server takes new requests but those at these addresses.
    pub fn closings(&self, ready: &BTreeSet<SocketAddr>) -> Vec<String> {
        let gone = |server: &&Server| server.open && !ready.contains(&server.address);
        self.servers.iter().filter(gone).map(|server| state(server, false)).collect()
    }

    /// Whether the servers of `backend` are these endpoints.
    pub fn agrees(&self, backend: &str, wanted: &[(SocketAddr, bool)]) -> bool {
        let open = self.servers.iter().filter(|server| server.backend == backend && server.open);
        let open: BTreeSet<SocketAddr> = open.map(|server| server.address).collect();
        let ready = wanted.iter().filter(|(_, ready)| *ready).map(|(address, _)| *address);
        open == ready.collect()
    }
}

fn state(server: &Server, open: bool) -> String {
    let state = if open { "ready" } else { "maint" };
    format!("set server {}/{} state {state}", server.backend, server.name)
}

/// A worker as the master lists it (`show proc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Worker {
    pub pid: u32,
    /// Ends what it has.
    pub leaving: bool,
}

/// Reads the answer to `show proc`.
pub fn workers(text: &str) -> Vec<Worker> {
    let mut leaving = false;
    let mut workers = Vec::new();
    for line in text.lines() {
        leaving |= line.starts_with("# old workers");
        let mut words = line.split_whitespace();
        if let (Some(pid), Some("worker")) = (words.next(), words.next())
            && let Ok(pid) = pid.parse()
        {
            workers.push(Worker { pid, leaving });
        }
    }
    workers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str =
        "# pxname,svname,qcur,scur,stot,econ,eresp,wretr,wredis,status,hrsp_5xx,ttime,addr,\n";

    fn report(rows: &[(&str, &str, &str, u64)]) -> Report {
        let rows = rows.iter().map(|(name, address, status, scur)| {
            format!("b,{name},0,{scur},0,0,0,0,0,{status},0,0,{address},\n")
        });
        Report::parse(&(HEADER.to_owned() + &rows.collect::<String>())).unwrap()
    }

    fn at(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn answers_are_read() {
        let text = format!(
            "{HEADER}b,s1,1,2,9,0,0,0,0,UP,0,0,127.0.0.1:80,\nb,s2,0,0,0,0,0,0,0,MAINT,0,0,[::1]:81,\nb,inside,0,1,1,0,0,0,0,no check,0,0,unix,\nb,BACKEND,0,2,9,1,2,3,4,UP,5,6,,\n\n"
        );
        let report = Report::parse(&text).unwrap();
        assert_eq!(report.servers.len(), 2);
        assert_eq!((report.in_flight(at(80)), report.in_flight(at(81))), (3, 0));
        assert!(report.servers[0].open && !report.servers[1].open);
        let numbers = &report.numbers["b"];
        assert_eq!((numbers.requests, numbers.failed, numbers.retries), (9, 3, 7));
        assert_eq!((numbers.server_errors, numbers.in_flight, numbers.total_us), (5, 2, 54_000));
        assert_eq!(Report::parse("nonsense"), None);
    }

    #[test]
    fn workers_are_listed() {
        let text = "#<PID> <type>\n7 master 1 [failed: 0] 0d\n# workers\n8 worker 0 0d\n# old workers\n9 worker 3 0d\n# programs\n";
        let expected = [Worker { pid: 8, leaving: false }, Worker { pid: 9, leaving: true }];
        assert_eq!(workers(text), expected);
        assert_eq!(workers(""), []);
    }

    #[test]
    fn slots_are_used_again_idle_ones_first() {
        let report = report(&[
            ("s1", "127.0.0.1:1", "UP", 3),
            ("s2", "127.0.0.1:2", "UP", 0),
            ("s3", "127.0.0.1:9", "MAINT", 0),
        ]);
        let commands = report.changes("b", &[(at(2), false), (at(3), true)]).unwrap();
        assert_eq!(
            commands,
            [
                "set server b/s3 addr 127.0.0.1 port 3",
                "set server b/s3 state ready",
                "set server b/s2 state maint",
                "set server b/s1 state maint",
            ]
        );
        assert_eq!(report.changes("b", &[(at(3), true), (at(4), true)]).unwrap().len(), 6);
        let four: Vec<_> = (3..7).map(|port| (at(port), true)).collect();
        assert_eq!(report.changes("b", &four), None);
        assert_eq!(report.closings(&BTreeSet::from([at(1)])), ["set server b/s2 state maint"]);
        assert!(report.agrees("b", &[(at(1), true), (at(2), true), (at(7), false)]));
        assert!(!report.agrees("b", &[(at(1), true)]));
    }

    /// Does to servers what HAProxy does.
    fn obey(report: &mut Report, commands: &[String]) {
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            let name = words[2].split_once('/').unwrap().1;
            let server = report.servers.iter_mut().find(|server| server.name == name).unwrap();
            match words[3] {
                "addr" => server.address = format!("{}:{}", words[4], words[6]).parse().unwrap(),
                _ => server.open = words[4] == "ready",
            }
        }
    }

    proptest! {
        #[test]
        fn commands_lead_to_what_is_wanted(
            steps in prop::collection::vec(prop::collection::btree_map(1u16..9, any::<bool>(), 0..5), 1..8),
        ) {
            let rows: Vec<String> = (1..=6).map(|n| format!("s{n}")).collect();
            let rows: Vec<_> = rows.iter().map(|n| (n.as_str(), "127.0.0.1:1", "MAINT", 0)).collect();
            let mut report = report(&rows);
            for step in steps {
                let wanted: Vec<_> = step.into_iter().map(|(port, open)| (at(1000 + port), open)).collect();
                let commands = report.changes("b", &wanted).unwrap();
                obey(&mut report, &commands);
                prop_assert!(report.agrees("b", &wanted));
                prop_assert_eq!(report.changes("b", &wanted).unwrap(), Vec::<String>::new());
            }
        }
    }
}
