//! The machine's packet filter, through `iptables` and `ip6tables`. Blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use super::rules::{Chain, Family, Present, Rule, present};

/// How long the program waits for others that change the filter, in seconds.
const WAIT: &str = "10";

fn run(family: Family, chain: Chain, words: &[&str]) -> Result<String, String> {
    let program = family.program();
    let output = Command::new(program)
        .args(["-w", WAIT, "-t", chain.table()])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("the program `{program}` could not be run ({error})"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default().trim();
    Err(format!("`{program} -t {} {}` failed: {said}", chain.table(), words.join(" ")))
}

/// Makes sure that rules can be made.
pub fn check() -> Result<(), String> {
    for chain in [Chain::Prerouting, Chain::Output] {
        run(Family::V4, chain, &["-S", chain.name()])?;
    }
    Ok(())
}

/// What may keep traffic from the ports of this machine, for people.
pub fn firewall() -> Option<String> {
    let policy = run(Family::V4, Chain::Input, &["-S", Chain::Input.name()]).unwrap_or_default();
    let line = policy.lines().find(|line| line.starts_with("-P INPUT"));
    if let Some(policy) = line.and_then(|line| line.split(' ').nth(2)).filter(|it| *it != "ACCEPT")
    {
        return Some(format!("the policy of the firewall's chain INPUT is {policy}"));
    }
    runs("firewalld").then(|| "firewalld runs".to_owned())
}

fn runs(name: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .map(|entry| entry.path().join("comm"))
        .any(|path| std::fs::read_to_string(path).is_ok_and(|comm| comm.trim_end() == name))
}

/// The rules of this server that are there, by filter and chain. One that can't be read has none.
pub fn list(tag: &str, family: Family) -> Result<BTreeMap<Chain, Vec<Present>>, String> {
    let mut all = BTreeMap::new();
    for chain in Chain::ALL {
        all.insert(chain, present(&run(family, chain, &["-S", chain.name()])?, tag));
    }
    Ok(all)
}

/// Makes the rules of one filter those that are `wanted`. What is there and right is not touched.
pub fn settle(tag: &str, family: Family, wanted: &BTreeSet<Rule>) -> Result<(), String> {
    let there = list(tag, family)?;
    let wanted: Vec<&Rule> = wanted.iter().filter(|rule| rule.family == family).collect();
    let of = |chain: Chain| there.get(&chain).into_iter().flatten();
    let remove = |chain: Chain, rule: &Present| {
        let words = rule.words.iter().map(String::as_str);
        let words: Vec<&str> = std::iter::once("-D").chain(words).collect();
        run(family, chain, &words)
    };
    // By its words the first of several that are alike is removed, so that this comes before the others are made.
    for chain in Chain::ALL {
        for rule in of(chain).filter(|rule| rule.late) {
            remove(chain, rule)?;
        }
    }
    // Then the new ones: at no moment is a port led nowhere that is to be led somewhere.
    for rule in &wanted {
        if of(rule.chain).any(|it| it.comment == rule.comment && !it.late) {
            continue;
        }
        let words = rule.words();
        let words = words.iter().map(String::as_str);
        let words: Vec<&str> = ["-I", rule.chain.name(), "1"].into_iter().chain(words).collect();
        run(family, rule.chain, &words)?;
    }
    for chain in Chain::ALL {
        let mut kept = BTreeSet::new();
        for rule in of(chain).filter(|rule| !rule.late) {
            let is_wanted = wanted.iter().any(|it| it.chain == chain && it.comment == rule.comment);
            if !is_wanted || !kept.insert(rule.comment.clone()) {
                remove(chain, rule)?;
            }
        }
    }
    Ok(())
}
