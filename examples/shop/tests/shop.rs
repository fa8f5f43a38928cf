//! The shop as a user gets it: the real binary, five processes on loopback.
#![allow(clippy::unwrap_used, reason = "this is all test code, also outside of #[test] functions")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// A running service; killed when dropped.
struct Service {
    child: Child,
    port: u16,
}

impl Service {
    fn start(role: &str, environment: &[(&str, &str)]) -> Service {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shop"))
            .arg(role)
            .env("PORT", "0")
            .env("KEEL_INSTANCE", format!("test-{role}-1"))
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        Service { child, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "the process did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn get(&self, path: &str) -> Answer {
        Caller::new(self.port).send("GET", path, "", "")
    }

    fn post(&self, path: &str, headers: &str, body: &Value) -> Answer {
        Caller::new(self.port).send("POST", path, headers, &body.to_string())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// One keep-alive connection, deliberately without an HTTP library: it must see what is on the wire.
struct Caller(BufReader<TcpStream>);

impl Caller {
    fn new(port: u16) -> Caller {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Caller(BufReader::new(stream))
    }

    fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.write(method, path, headers, body);
        self.read()
    }

    fn write(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn read(&mut self) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "closed after {head:?}");
        }
        let status = head[9..12].parse().unwrap();
        let mut answer = Answer { status, head, body: String::new() };
        let length: u64 = answer.header("content-length").unwrap().parse().unwrap();
        (&mut self.0).take(length).read_to_string(&mut answer.body).unwrap();
        answer
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.0.fill_buf(), Ok([]))
    }
}

/// All five.
struct Shop {
    storefront: Service,
    catalog: Service,
    cart: Service,
    orders: Service,
    payments: Service,
}

impl Shop {
    fn start(data: &Path) -> Shop {
        let catalog = Service::start("catalog", &[("SHOP_VERSION", "v7")]);
        let catalog_url = catalog.url();
        let cart = Service::start("cart", &[("CATALOG_URL", &catalog_url)]);
        let payments = Service::start("payments", &[]);
        let orders = Service::start(
            "orders",
            &[("PAYMENTS_URL", &payments.url()), ("DATA_DIR", data.to_str().unwrap())],
        );
        let storefront = Service::start(
            "storefront",
            &[
                ("CATALOG_URL", &catalog_url),
                ("CART_URL", &cart.url()),
                ("ORDERS_URL", &orders.url()),
            ],
        );
        Shop { storefront, catalog, cart, orders, payments }
    }
}

fn one_mug() -> Value {
    json!({ "name": "Ada", "items": [{ "sku": "mug", "quantity": 1 }] })
}

#[test]
fn a_customer_buys_something_through_the_api() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path());
    let products = shop.storefront.get("/api/products");
    assert_eq!(products.status, 200);
    assert_eq!(products.json()["products"].as_array().unwrap().len(), 12);
    assert_eq!(products.header("x-instance"), Some("test-storefront-1"));
    assert!(products.header("x-trail").unwrap().starts_with("catalog test-catalog-1 v7 "));

    let put = shop.storefront.post("/api/cart", "", &json!({ "sku": "lantern", "add": 2 }));
    assert_eq!(put.json()["total_cents"], 9800);
    let cookie = put.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let cart = Caller::new(shop.storefront.port).send(
        "GET",
        "/api/cart",
        &format!("Cookie: {cookie}\r\n"),
        "",
    );
    assert_eq!(cart.json()["count"], 2);

    let order = shop.storefront.post(
        "/api/checkout",
        &format!("Cookie: {cookie}\r\nIdempotency-Key: once\r\n"),
        &json!({ "name": "Ada" }),
    );
    assert_eq!(order.status, 201, "{order:?}");
    assert!(order.header("x-trail").unwrap().contains("payments test-payments-1"), "{order:?}");
    let id = order.json()["id"].as_str().unwrap().to_owned();
    let again = shop.storefront.post(
        "/api/checkout",
        &format!("Cookie: {cookie}\r\nIdempotency-Key: once\r\n"),
        &json!({ "name": "Ada" }),
    );
    assert_eq!(again.json()["id"], id.as_str());
    let orders = shop.storefront.get("/api/orders").json();
    assert_eq!((orders["count"].as_u64(), &orders["orders"][0]["id"]), (Some(1), &json!(id)));
}

#[test]
fn the_page_works_without_scripts() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path());
    let page = shop.storefront.get("/");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("Storm lantern") && !page.body.contains("{{"));
    let mut caller = Caller::new(shop.storefront.port);
    let put = caller.send("POST", "/cart", "", "sku=mug&add=3");
    assert_eq!((put.status, put.header("location")), (303, Some("/#cart")));
    let cookie = put.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let cookie = format!("Cookie: {cookie}\r\n");
    let page = caller.send("GET", "/", &cookie, "");
    assert!(page.body.contains("€42.00"), "three mugs");
    let bought = caller.send("POST", "/checkout", &cookie, "name=Ada+L%26&key=k1");
    assert_eq!(bought.status, 303, "{bought:?}");
    let thanks = caller.send("GET", bought.header("location").unwrap(), "", "");
    assert!(thanks.body.contains("Thank you, Ada L&amp;!"));
    let empty = caller.send("POST", "/checkout", "", "name=A");
    assert_eq!(empty.status, 400);
    assert!(empty.body.contains("The cart is empty"), "the page says why");
}

#[test]
fn the_page_comes_and_says_so_when_the_catalog_is_away() {
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::start(data.path());
    shop.catalog.signal("KILL");
    shop.catalog.wait();
    let page = shop.storefront.get("/");
    assert_eq!(page.status, 503);
    assert!(page.body.contains("catalog: no connection"), "{}", page.body);
    assert_eq!(shop.storefront.get("/readyz").status, 200, "it is not the storefront that is ill");
}

#[test]
fn acknowledged_orders_survive_kill_9_and_are_unique() {
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::start(data.path());
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        let key = format!("Idempotency-Key: key-{number}\r\n");
        let order = shop.storefront.post("/api/checkout", &key, &one_mug());
        assert_eq!(order.status, 201, "{order:?}");
        acknowledged.push(order.json()["id"].as_str().unwrap().to_owned());
    }
    shop.orders.signal("KILL");
    shop.orders.wait();
    let reborn = Service::start(
        "orders",
        &[("DATA_DIR", data.path().to_str().unwrap()), ("PAYMENTS_URL", &shop.payments.url())],
    );
    for id in &acknowledged {
        assert_eq!(reborn.get(&format!("/orders/{id}")).status, 200, "{id} is lost");
    }
    let wish = json!({ "name": "Ada", "lines": [
        { "sku": "mug", "name": "Mug", "quantity": 1, "price_cents": 1 }] });
    let repeated = reborn.post("/orders", "Idempotency-Key: key-3\r\n", &wish);
    assert_eq!(repeated.json()["id"], acknowledged[3].as_str());
    assert_eq!(reborn.get("/orders").json()["count"], 20);
}

#[test]
fn requests_in_flight_are_answered_before_the_process_ends() {
    let mut catalog = Service::start("catalog", &[("SHOP_LATENCY_MS", "400")]);
    let mut busy = Caller::new(catalog.port);
    let mut idle = Caller::new(catalog.port);
    assert_eq!(idle.send("GET", "/readyz", "", "").status, 200);
    busy.write("GET", "/products", "", "");
    let arrived = Instant::now();
    while arrived.elapsed() < Duration::from_millis(50) {
        std::thread::yield_now(); // Let the request reach the service.
    }
    catalog.signal("TERM");
    let answer = busy.read();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(busy.is_closed() && idle.is_closed());
    assert_eq!(catalog.wait().code(), Some(0));
}

#[test]
fn a_request_on_its_way_over_an_idle_connection_is_still_answered() {
    let mut catalog = Service::start("catalog", &[]);
    let mut caller = Caller::new(catalog.port);
    assert_eq!(caller.send("GET", "/products", "", "").status, 200);
    catalog.signal("TERM");
    // Sent without a pause: each must be answered, until one answer says that it is the last.
    loop {
        let answer = caller.send("GET", "/products", "", "");
        assert_eq!(answer.status, 200);
        if answer.header("connection") == Some("close") {
            break;
        }
    }
    assert!(caller.is_closed());
    assert_eq!(catalog.wait().code(), Some(0));
}

#[test]
fn knobs_turn_at_run_time() {
    let mut catalog = Service::start("catalog", &[]);
    let knobs = |value: Value| catalog.post("/knobs", "", &value);
    assert_eq!(knobs(json!({ "error_rate": 1 })).json()["error_rate"], 1.0);
    assert_eq!(catalog.get("/products").status, 500);
    assert_eq!(catalog.get("/healthz").status, 200, "errors are not bad health");
    knobs(json!({ "error_rate": 0, "latency_ms": 120 }));
    let begun = Instant::now();
    assert_eq!(catalog.get("/products").status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(120));
    knobs(json!({ "latency_ms": 0, "unhealthy": true }));
    assert_eq!((catalog.get("/healthz").status, catalog.get("/readyz").status), (503, 503));
    knobs(json!({ "unhealthy": false, "memory_mb": 64 }));
    let status = std::fs::read_to_string(format!("/proc/{}/status", catalog.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(resident > 64 << 10, "{resident} kB");
    assert_eq!(knobs(json!({ "latncy_ms": 1 })).status, 422);
    assert_eq!(knobs(json!({ "start_delay_ms": 1 })).status, 422);
    assert_eq!(catalog.get("/knobs").json()["memory_mb"], 64);
    knobs(json!({ "crash": "exit", "crash_after": 2 }));
    assert_eq!(catalog.get("/products").status, 200);
    Caller::new(catalog.port).write("GET", "/products", "", "");
    assert_eq!(catalog.wait().code(), Some(1));
}

#[test]
fn a_crash_now_by_abort() {
    use std::os::unix::process::ExitStatusExt;
    let mut payments = Service::start("payments", &[]);
    assert_eq!(payments.post("/knobs", "", &json!({ "crash": "abort" })).status, 200);
    assert_eq!(payments.wait().signal(), Some(6));
}

#[test]
fn a_hanging_service_answers_nothing_but_knobs() {
    let mut catalog = Service::start("catalog", &[("SHOP_HANG", "1")]);
    let mut stuck = Caller::new(catalog.port);
    stuck.write("GET", "/products", "", "");
    assert_eq!(catalog.get("/knobs").json()["hang"], true);
    let check = Command::new(env!("CARGO_BIN_EXE_shop"))
        .args(["check", &format!("{}/healthz", catalog.url())])
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(1));
    catalog.signal("TERM");
    assert_eq!(catalog.wait().code(), Some(0), "it ends in spite of the request");
}

#[test]
fn check_tells_healthy_from_unhealthy() {
    let catalog = Service::start("catalog", &[]);
    let check = |url: String| {
        let check = Command::new(env!("CARGO_BIN_EXE_shop")).args(["check", &url]).output();
        check.unwrap().status.code()
    };
    assert_eq!(check(format!("{}/healthz", catalog.url())), Some(0));
    assert_eq!(check(format!("{}/nowhere", catalog.url())), Some(1));
    assert_eq!(check("http://127.0.0.1:1/".to_owned()), Some(1));
    assert_eq!(check("nonsense".to_owned()), Some(1));
}

#[test]
fn load_reports_what_came_back_and_its_acknowledged_orders_exist() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path());
    let acks = data.path().join("acks");
    let load = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_shop")).arg("load").args(arguments).output();
        let output = output.unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), report)
    };
    let products = format!("{}/api/products", shop.storefront.url());
    let (code, report) = load(&[&products, "--requests", "300", "--rate", "2000"]);
    assert_eq!((code, &report["requests"], &report["failed"]), (Some(0), &json!(300), &json!(0)));
    assert_eq!(report["instances"]["test-storefront-1"], 300);

    let front = shop.storefront.url();
    let arguments =
        [front.as_str(), "--checkout", "--requests", "40", "--acks", acks.to_str().unwrap()];
    let (code, report) = load(&arguments);
    assert_eq!((code, &report["failed"]), (Some(0), &json!(0)), "{report}");
    let acknowledged = std::fs::read_to_string(&acks).unwrap();
    assert_eq!(acknowledged.lines().count(), 40);
    for id in acknowledged.lines() {
        assert_eq!(shop.orders.get(&format!("/orders/{id}")).status, 200);
    }

    shop.cart.post("/knobs", "", &json!({ "error_rate": 1 }));
    let (code, report) = load(&[&front, "--checkout", "--requests", "5"]);
    assert_eq!((code, &report["failed"]), (Some(1), &json!(5)));
    assert!(report["failures"].to_string().contains("cart answered 500"), "{report}");
}

#[test]
fn a_connection_closed_by_the_other_side_costs_no_get() {
    let data = tempfile::tempdir().unwrap();
    let mut shop = Shop::start(data.path());
    assert_eq!(shop.storefront.get("/api/products").status, 200);
    // The storefront now holds a connection to a catalog that is replaced on the same port.
    let port = shop.catalog.port.to_string();
    shop.catalog.signal("KILL");
    shop.catalog.wait();
    shop.catalog = Service::start("catalog", &[("PORT", &port)]);
    assert_eq!(shop.storefront.get("/api/products").status, 200);
}

#[test]
fn bad_use_is_refused_with_words() {
    let run = |arguments: &[&str], environment: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_shop"))
            .args(arguments)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, words) = run(&["catalogue"], &[]);
    assert!(code == Some(2) && words.contains("catalogue"), "{words}");
    let (code, words) = run(&["catalog"], &[("SHOP_ERROR_RATE", "7")]);
    assert!(code == Some(2) && words.contains("SHOP_ERROR_RATE=7"), "{words}");
    let taken = Service::start("catalog", &[]);
    let (code, words) = run(&["cart"], &[("PORT", &taken.port.to_string())]);
    assert!(code == Some(1) && words.contains("can't listen on port"), "{words}");
    let (code, words) = run(&["orders"], &[("PORT", "0"), ("DATA_DIR", "/proc/no")]);
    assert!(code == Some(1) && words.contains("DATA_DIR"), "{words}");
}
