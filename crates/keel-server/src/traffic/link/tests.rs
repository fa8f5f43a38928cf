//! A link to a proxy that the test plays.

use keel_acme::Published;
use keel_route::snapshot::{Certificate, Challenges, Lacking, Notices, Stats};
use keel_store::{RedbStore, Store};
use tokio::net::UnixListener;

use super::super::Told;
use super::begin::START_TIME;
use super::*;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The proxy's end.
struct Proxy {
    stream: UnixStream,
    decoder: keel_route::codec::Decoder,
}

impl Proxy {
    /// The next whole snapshot.
    async fn snapshot(&mut self) -> Snapshot {
        let reading = async {
            loop {
                while let Some(frame) = self.decoder.decode().unwrap() {
                    if let ToProxy::Snapshot(snapshot) = frame {
                        return snapshot;
                    }
                }
                let mut bytes = BytesMut::with_capacity(READ_SIZE);
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "the link ended");
                self.decoder.push(&bytes);
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap()
    }

    async fn acknowledge(&mut self, generation: Generation) {
        let frame =
            encode(&FromProxy::Ack { generation, failed: Vec::new(), lacks: None }).unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }
}

async fn link(
    state_dir: PathBuf,
    credentials: Arc<Credentials>,
    shown: watch::Sender<u64>,
) -> Link {
    let store: Arc<dyn Store> = Arc::new(RedbStore::in_memory().unwrap());
    let (network, _) = Network::open(Some("127.97.0.0/16"), &*store).await.unwrap();
    Link {
        program: "true".into(),
        state_dir,
        worlds: Arc::new(WorldReader::new(store.clone()).await.unwrap()),
        board: Arc::new(Board::load(&*store).await.unwrap()),
        events: Arc::new(EventLog::load(&*store).await.unwrap()),
        node: NodeName::new("here").unwrap(),
        zone: None,
        network: Arc::new(network),
        runtime: Arc::new(keel_runtime::FakeRuntime::new()),
        access_log: None,
        ask: Arc::default(),
        state: watch::channel(ProxyState::default()).0,
        credentials,
        shown,
        engine: Default::default(),
    }
}

#[tokio::test]
async fn what_the_proxy_says_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let (shown, _) = watch::channel(0);
    let link = link(directory.path().to_owned(), Arc::default(), shown).await;
    let mut session = Session::default();
    let lacking = Lacking {
        engine: "nginx".to_owned(),
        what: "slow start".to_owned(),
        why: "it has none".to_owned(),
        places: vec!["cluster shop/cart:80".to_owned()],
    };
    let ack = |generation, lacks| FromProxy::Ack {
        generation: Generation(generation),
        failed: Vec::new(),
        lacks,
    };
    let all = Some(vec![lacking.clone()]);
    link.hear(&mut session, ack(1, all.clone()));
    link.hear(&mut session, ack(2, None));
    assert_eq!(link.state.borrow().lacks, std::slice::from_ref(&lacking));
    // An earlier version says so each time, and whoever connects anew once more.
    link.hear(&mut session, ack(3, all.clone()));
    link.hear(&mut Session::default(), ack(4, all));
    assert_eq!(link.state.borrow().lacks, std::slice::from_ref(&lacking));
    let notice = keel_route::snapshot::EndpointNotice {
        cluster: "shop/cart:80".to_owned(),
        instance: InstanceId::new("shop-cart-1").unwrap(),
        is_out: false,
        reason: "all is well".to_owned(),
        for_ms: None,
        ago_ms: 0,
        no_tls: false,
    };
    let engine = vec!["haproxy (process 7) ended by signal 9; it is started again".to_owned()];
    let notices = Notices { endpoints: vec![notice], lost: 3, engine, ..Notices::default() };
    link.hear(&mut session, FromProxy::Stats(Stats { notices, ..Stats::default() }));
    assert!(link.state.borrow().stats.notices.is_empty());

    let told = link.events.after(0);
    let told: Vec<_> = told
        .iter()
        .map(|event| (event.kind, event.stack.as_ref().map(|s| s.as_str()), event.message.as_str()))
        .collect();
    let expected = [
        (
            EventKind::EngineLacks,
            Some("shop"),
            "nginx lacks slow start (cluster shop/cart:80): it has none",
        ),
        (
            EventKind::EndpointReadmitted,
            Some("shop"),
            "gets requests at port 80 again: all is well",
        ),
        (EventKind::Platform, None, "haproxy (process 7) ended by signal 9; it is started again"),
        (EventKind::EndpointEjected, None, "3 more endpoints were left out or let in again"),
    ];
    assert_eq!(told, expected);
    // What one that is to be replaced lacks is kept, and told to nobody.
    let replaced = Lacking { what: "trailers".to_owned(), ..lacking };
    let mut session = Session { is_other: true, ..Session::default() };
    link.hear(&mut session, ack(5, Some(vec![replaced.clone()])));
    assert_eq!(link.state.borrow().lacks, [replaced]);
    assert_eq!(link.events.after(0).len(), expected.len());
    // One that says nothing in its place lacks nothing.
    link.hear(&mut Session::default(), ack(5, None));
    assert_eq!(link.state.borrow().lacks, []);
}

#[tokio::test]
async fn what_was_told_is_kept_for_the_next_server() {
    let store: Arc<dyn Store> = Arc::new(RedbStore::in_memory().unwrap());
    let told = Told::load(store.clone()).await.unwrap();
    assert_eq!(told.lacks(), []);
    let (state, proxy) = watch::channel(ProxyState::default());
    let following = tokio::spawn(told.follow(proxy));
    let lacking = Lacking {
        engine: "nginx".to_owned(),
        what: "slow start".to_owned(),
        why: "it has none".to_owned(),
        places: Vec::new(),
    };
    for lacks in [vec![lacking.clone()], Vec::new(), vec![lacking]] {
        state.send_modify(|state| state.lacks.clone_from(&lacks));
        let kept = async {
            while Told::load(store.clone()).await.unwrap().lacks() != lacks {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, kept).await.unwrap();
    }
    drop(state);
    tokio::time::timeout(PATIENCE, following).await.unwrap().unwrap();
}

#[tokio::test]
async fn certificates_are_in_the_first_snapshot_and_proofs_are_shown_when_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("proxy.sock")).unwrap();
    let certificate =
        Certificate { names: Vec::new(), chain: "chain".to_owned(), key: "key".to_owned() };
    let published = |revision, proof: Option<&str>| {
        let mut challenges = Challenges::default();
        challenges.http.extend(proof.map(|proof| ("token".to_owned(), proof.to_owned())));
        Published { revision, certificates: vec![certificate.clone()], challenges }
    };
    let credentials = Arc::new(Credentials::default());
    credentials.set_issued(published(5, None));
    let (sender, mut shown) = watch::channel(0);
    let link = link(directory.path().to_owned(), credentials.clone(), sender).await;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(link.run());
    let (stream, _) = listener.accept().await.unwrap();
    let mut proxy = Proxy { stream, decoder: keel_route::codec::Decoder::default() };

    let first = proxy.snapshot().await;
    assert_eq!(*first.certificates, std::slice::from_ref(&certificate));
    assert_eq!(*shown.borrow(), 0, "nobody shows it yet");
    proxy.acknowledge(first.generation).await;
    let is = |revision| move |shown: &u64| *shown == revision;
    tokio::time::timeout(PATIENCE, shown.wait_for(is(5))).await.unwrap().unwrap();

    credentials.set_issued(published(6, Some("proof")));
    let second = proxy.snapshot().await;
    assert_eq!(second.challenges.http["token"], "proof");
    assert!(second.generation > first.generation);
    proxy.acknowledge(first.generation).await;
    credentials.set_issued(published(7, None));
    let third = proxy.snapshot().await;
    assert!(third.challenges.is_empty());
    assert_eq!(*shown.borrow(), 5, "an older word is none for a newer snapshot");
    proxy.acknowledge(third.generation).await;
    tokio::time::timeout(PATIENCE, shown.wait_for(is(7))).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_proxy_that_was_started_is_waited_for_while_it_lives() {
    let begun = |at, life| Begun { pid: 0, at, life };
    let now = Instant::now();
    assert!(begun(now, tokio::spawn(std::future::pending())).may_come());
    let long_ago = now.checked_sub(START_TIME).unwrap();
    assert!(!begun(long_ago, tokio::spawn(std::future::pending())).may_come());
    let ended = tokio::spawn(async {});
    while !ended.is_finished() {
        tokio::task::yield_now().await;
    }
    assert!(!begun(now, ended).may_come());
}

#[test]
fn a_proxy_that_ends_again_and_again_is_started_ever_more_seldom() {
    let pause = |in_vain| pause(in_vain, START_TIME);
    assert_eq!((pause(0), pause(100)), (Duration::ZERO, START_TIME));
    assert!((1..100).all(|n| pause(n - 1) <= pause(n)));
}

#[tokio::test]
async fn a_successor_is_waited_for_while_it_lives_and_followed_by_another_when_it_has_ended() {
    let begun = |life| Some(Begun { pid: 0, at: Instant::now(), life });
    let mut succession = Succession::default();
    for _ in 0..3 {
        tokio::time::timeout(PATIENCE, succession.due()).await.unwrap();
        succession.begin(begun(tokio::spawn(async {})));
    }
    succession.begin(begun(tokio::spawn(std::future::pending())));
    tokio::time::timeout(Duration::from_millis(100), succession.due()).await.unwrap_err();
}

#[tokio::test]
async fn a_proxy_is_taken_for_dead_only_if_it_is_late_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (shown, _) = watch::channel(0);
    let link = link(directory.path().to_owned(), Arc::default(), shown).await;
    let mut session = Session::default();
    assert!(!link.hangs(&mut session) && !link.hangs(&mut session), "nothing was asked");
    // This server stood still, and has not read the answer yet.
    session.questions.push_back(Instant::now().checked_sub(HANGS).unwrap());
    assert!(!link.hangs(&mut session));
    link.hear(&mut session, FromProxy::Stats(Stats::default()));
    assert!(!link.hangs(&mut session));
    // There is none.
    session.questions.push_back(Instant::now().checked_sub(HANGS).unwrap());
    assert!(!link.hangs(&mut session));
    assert!(link.hangs(&mut session));
}
