//! The rules of the packet filter that lead connections around. Pure.

use std::collections::BTreeSet;

use super::Way;

/// What every comment of ours begins with; the server's tag follows.
const NAME: &str = "keel";
/// Where engines lead published ports: Docker, and Podman with either of its networks.
const ENGINES: [&str; 3] = ["DOCKER", "CNI-HOSTPORT-DNAT", "NETAVARK-HOSTPORT-DNAT"];
/// Longest comment that the filter takes is 255 bytes.
const MAX_COMMENT: usize = 200;

/// Which filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// The program that speaks to it.
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// Which chain of which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// What comes in.
    Prerouting,
    /// What this machine itself sends.
    Output,
    /// What is let in, where not everything is.
    Input,
}

impl Chain {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Prerouting, Self::Output, Self::Input];

    /// The table.
    pub fn table(self) -> &'static str {
        match self {
            Self::Prerouting | Self::Output => "nat",
            Self::Input => "filter",
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Output => "OUTPUT",
            Self::Input => "INPUT",
        }
    }
}

/// One rule. Its comment says all that it is about, so that two with the same comment are the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Of which filter.
    pub family: Family,
    /// In which chain.
    pub chain: Chain,
    /// By which it is known again.
    pub comment: String,
    /// What it matches and does, as the program's words, without the comment.
    words: Vec<String>,
}

impl Rule {
    /// The words after the chain's name.
    pub fn words(&self) -> Vec<String> {
        let comment = ["-m", "comment", "--comment", &self.comment].map(str::to_owned);
        let jump = self.words.iter().position(|word| word == "-j").unwrap_or(self.words.len());
        let (matches, action) = self.words.split_at(jump);
        matches.iter().cloned().chain(comment).chain(action.iter().cloned()).collect()
    }
}

/// What the comments of this server begin with.
pub fn prefix(tag: &str) -> String {
    format!("{NAME} {tag} ")
}

/// The rules that lead `port` around. `network` is that of the virtual addresses.
pub fn of(tag: &str, port: u16, way: &Way, network: &str, filtered: bool) -> BTreeSet<Rule> {
    let (stack, service) = &way.owner;
    let about = format!("{}{stack}/{service} {port} to {}", prefix(tag), way.detour);
    let mut rules = BTreeSet::new();
    for ip in &way.ips {
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let (to, text): (Vec<String>, String) = match (way.published, ip.is_unspecified()) {
            (true, true) => {
                (["-m", "addrtype", "--dst-type", "LOCAL"].map(str::to_owned).into(), "all".into())
            }
            (true, false) => (vec!["-d".into(), ip.to_string()], ip.to_string()),
            // Nobody but virtual addresses leads there.
            (false, true) if ip.is_ipv4() => (vec!["-d".into(), network.into()], network.into()),
            (false, _) => continue,
        };
        for chain in [Chain::Prerouting, Chain::Output] {
            let mut words: Vec<String> = vec!["-p".into(), "tcp".into()];
            words.extend(to.iter().cloned());
            words.extend(["-m".into(), "tcp".into(), "--dport".into(), port.to_string()]);
            words.extend(["-j", "DNAT", "--to-destination"].map(str::to_owned));
            words.push(format!(":{}", way.detour));
            rules.insert(Rule { family, chain, comment: cut(format!("{about} {text}")), words });
        }
        if filtered {
            let mut words: Vec<String> = vec!["-p".into(), "tcp".into(), "-m".into(), "tcp".into()];
            words.extend(["--dport".into(), way.detour.to_string()]);
            words.extend(
                ["-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT"].map(str::to_owned),
            );
            let comment = cut(format!("{about} in"));
            rules.insert(Rule { family, chain: Chain::Input, comment, words });
        }
    }
    rules
}

/// Of a comment that is too long, the end matters: what it is about.
fn cut(text: String) -> String {
    let over = text.len().saturating_sub(MAX_COMMENT);
    if over == 0 {
        return text;
    }
    let begin = text.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
    let end = text.get(over + begin.len() + 1..).unwrap_or_default();
    format!("{begin} {end}")
}

/// A rule that is there: the words that take it away, and its comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// Its comment.
    pub comment: String,
    /// The words after `-D`.
    pub words: Vec<String>,
    /// A jump of the engine's comes before it, so that it is never reached.
    pub late: bool,
}

/// The rules of ours in what `-S` prints.
pub fn present(listing: &str, tag: &str) -> Vec<Present> {
    let prefix = prefix(tag);
    let mut late = false;
    let mut found = Vec::new();
    for line in listing.lines() {
        let Some(words) = words(line).strip_prefix(&["-A".to_owned()]).map(<[String]>::to_vec)
        else {
            continue;
        };
        let after = |option: &str| {
            let at = words.iter().position(|word| word == option)?;
            words.get(at + 1).cloned()
        };
        late |= after("-j").is_some_and(|target| ENGINES.contains(&target.as_str()));
        if let Some(comment) = after("--comment").filter(|comment| comment.starts_with(&prefix)) {
            found.push(Present { comment, words, late });
        }
    }
    found
}

/// Splits a line as a shell would, as far as `-S` quotes.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (quoted, any) = (!quoted, true),
            '\\' if quoted => word.extend(letters.next()),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
                any = false;
            }
            letter => word.push(letter),
        }
    }
    if any || !word.is_empty() {
        all.push(word);
    }
    all
}
