//! What is held, where listeners go and which rules there have to be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use keel_model::{ServiceName, StackName};
use keel_route::snapshot::Listener;

use super::keeper::{Listening, is_wanted};
use super::rules::{self, Chain, Family, present};
use super::{Way, Ways, divert};

fn way(ips: &[&str], held: bool) -> Way {
    Way {
        owner: (StackName::new("shop").unwrap(), ServiceName::new("web").unwrap()),
        detour: 33_000,
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        held,
        published: true,
        removing: false,
    }
}

fn diverted(binds: &[&str], way: Way) -> Vec<String> {
    let listener = |bind: &&str| Listener { bind: bind.parse().unwrap(), ..Listener::default() };
    let mut listeners: Vec<Listener> = binds.iter().map(listener).collect();
    divert(&mut listeners, &Ways::from([(8080, way)]));
    listeners.iter().map(|listener| listener.bind.to_string()).collect()
}

#[test]
fn what_can_not_be_opened_is_moved() {
    let all = ["0.0.0.0:8080", "[::]:8080", "10.77.0.2:8080", "10.77.0.2:80"];
    let held = diverted(&all, way(&["0.0.0.0"], true));
    assert_eq!(held, ["0.0.0.0:33000", "[::]:8080", "10.77.0.2:33000", "10.77.0.2:80"]);
    let one = diverted(&all, way(&["127.0.0.1"], true));
    assert_eq!(one, ["0.0.0.0:33000", "[::]:8080", "10.77.0.2:8080", "10.77.0.2:80"]);
}

#[test]
fn what_is_free_again_is_opened_beside_the_detour() {
    let free = diverted(&["0.0.0.0:8080", "[::]:8080"], way(&["0.0.0.0", "::"], false));
    assert_eq!(free, ["0.0.0.0:8080", "[::]:8080", "0.0.0.0:33000", "[::]:33000"]);
}

#[test]
fn a_port_is_led_around_until_the_proxy_has_it() {
    let listening = |detour, port| Listening { detour, port };
    let (held, free) = (way(&["0.0.0.0"], true), way(&["0.0.0.0"], false));
    assert!(!is_wanted(&held, false, &listening(false, false)), "nobody would answer");
    assert!(is_wanted(&held, false, &listening(true, false)));
    assert!(is_wanted(&held, true, &listening(false, false)), "the proxy is between two lives");
    assert!(is_wanted(&free, true, &listening(true, false)), "nobody else has it yet");
    assert!(!is_wanted(&free, true, &listening(true, true)));
    assert!(!is_wanted(&free, false, &listening(true, false)));
    let going = Way { removing: true, ..held };
    assert!(!is_wanted(&going, true, &listening(true, false)));
}

#[test]
fn rules_are_known_again() {
    let way = way(&["0.0.0.0", "::"], true);
    let rules = rules::of("ab12", 8080, &way, "10.77.0.0/16", true);
    assert_eq!(rules.len(), 6);
    let of = |family, chain| {
        let rule = rules.iter().find(|rule| rule.family == family && rule.chain == chain).unwrap();
        (rule.words().join(" "), rule.comment.clone())
    };
    let (words, comment) = of(Family::V4, Chain::Prerouting);
    assert_eq!(
        words,
        format!(
            "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -m comment --comment {comment} -j DNAT \
                 --to-destination :33000"
        )
    );
    let listing = format!(
        "-P PREROUTING ACCEPT\n-A PREROUTING -p tcp -m tcp --dport 1 -m comment --comment \"keel other x\" -j ACCEPT\n\
         -A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -m comment --comment \"{comment}\" -j DNAT \
         --to-destination :33000\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A PREROUTING -p tcp -m comment --comment \"keel ab12 late\" -j DNAT --to-destination :1\n"
    );
    let found = present(&listing, "ab12");
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].comment.as_str(), found[0].late, found[1].late), (&*comment, false, true));
    assert_eq!(found[0].words.join(" "), format!("PREROUTING {words}"));
}

#[test]
fn what_the_file_does_not_publish_is_led_around_for_virtual_addresses_only() {
    let way = Way { published: false, ..way(&["0.0.0.0", "::", "192.0.2.1"], true) };
    let rules = rules::of("ab12", 8080, &way, "10.77.0.0/16", false);
    assert_eq!(rules.len(), 2);
    assert!(rules.iter().all(|rule| rule.words().contains(&"10.77.0.0/16".to_owned())));
}

#[test]
fn one_address_is_led_around_alone_and_comments_are_bounded() {
    let owner = (StackName::new("s").unwrap(), ServiceName::new("x".repeat(63)).unwrap());
    let way = Way { owner, ..way(&["127.0.0.1"], true) };
    let rules = rules::of(&"t".repeat(150), 8080, &way, "10.77.0.0/16", false);
    let comments: BTreeSet<&str> = rules.iter().map(|rule| rule.comment.as_str()).collect();
    assert!(comments.iter().all(|it| it.len() <= 200 && it.ends_with("8080 to 33000 127.0.0.1")));
    let ip: IpAddr = "127.0.0.1".parse().unwrap();
    assert!(rules.iter().all(|rule| rule.words().windows(2).any(|w| w == ["-d", &ip.to_string()])));
}
