//! The shop's front: one HTML page that works with and without scripts, and the JSON API.
//!
//! | request | answer |
//! |---|---|
//! | `GET /`, `GET /order/{id}` | the page |
//! | `POST /cart`, `POST /checkout` (forms) | back to the page; with `X-Fragment`, only the cart panel |
//! | `GET /api/products`, `/api/orders`, `/api/orders/{id}` | what `catalog` and `orders` say |
//! | `GET /api/cart`, `POST /api/cart {sku, add or quantity}` | the cart of the caller's cookie |
//! | `POST /api/checkout {name, items?}` | the order; `items` instead of a cookie's cart |
//!
//! Keeps nothing: the cart is in the customer's cookie, orders are with `orders`.

use hyper::header::{HeaderName, LOCATION, SET_COOKIE};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cart::{Change, Priced};
use crate::catalog::Assortment;
use crate::client::{Message, Target};
use crate::http::{Call, Failure, Reply, Trail, form_value};
use crate::knobs::Dice;
use crate::ledger::Order;
use crate::orders::Wish;
use crate::render;
use crate::settings::Peers;
use crate::token::MAX_LINES;

const COOKIE: &str = "cart";
const COOKIE_ATTRIBUTES: &str = "Path=/; SameSite=Lax; HttpOnly";
const COOKIE_SECONDS: u32 = 7 * 24 * 3600;
/// The page's script asks for a piece of the page with it.
const X_FRAGMENT: HeaderName = HeaderName::from_static("x-fragment");

/// The service.
#[derive(Debug)]
pub struct Storefront {
    catalog: Target,
    cart: Target,
    orders: Target,
    /// This instance, as the first hop of the page's trail.
    own_hop: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkout {
    #[serde(default)]
    name: String,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    sku: String,
    quantity: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CartChange {
    sku: String,
    add: Option<u32>,
    quantity: Option<u32>,
}

impl Storefront {
    /// A storefront for the services at `peers`; `own_hop` names this instance in the page.
    pub fn new(peers: Peers, own_hop: String) -> Storefront {
        Storefront {
            catalog: Target::new("catalog", peers.catalog),
            cart: Target::new("cart", peers.cart),
            orders: Target::new("orders", peers.orders),
            own_hop,
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// What another service failed with, or what is wrong with the request.
    pub async fn answer(&self, call: Call) -> Result<Reply, Failure> {
        match (call.method.clone(), call.path.as_str()) {
            (Method::GET, "/") => Ok(self.page(&call, None, Panel::Cart).await),
            (Method::GET, "/favicon.ico") => Ok(Reply::bytes("image/svg+xml", render::ICON)),
            (Method::GET, path) if path.starts_with("/order/") => {
                let mut trail = Trail::default();
                let id = path.trim_start_matches("/order/");
                let order: Order =
                    self.get(&self.orders, format!("/orders/{id}"), &mut trail).await?;
                Ok(self.page(&call, None, Panel::Thanks(Box::new(order), trail)).await)
            }
            (Method::POST, "/cart" | "/checkout") => self.form(&call).await,
            (Method::GET, "/api/products") => self.pass_on(&self.catalog, "/products").await,
            (Method::GET, path) if path == "/api/orders" || path.starts_with("/api/orders/") => {
                self.pass_on(&self.orders, path.trim_start_matches("/api")).await
            }
            (Method::GET, "/api/cart") => {
                let mut trail = Trail::default();
                let cart = self.read_cart(&call, &mut trail).await?;
                Ok(Reply::json(&cart).trail(trail))
            }
            (Method::POST, "/api/cart") => {
                let change: CartChange = call.json()?;
                let mut trail = Trail::default();
                let cart = self.change_cart(&call, change, &mut trail).await?;
                Ok(with_cookie(Reply::json(&cart), &cart.token).trail(trail))
            }
            (Method::POST, "/api/checkout") => {
                let checkout: Checkout = call.json()?;
                let mut trail = Trail::default();
                let key = call.idempotency_key().unwrap_or_else(new_key);
                let order = self.check_out(&call, checkout, &key, &mut trail).await?;
                let reply = Reply::json(&order).status(StatusCode::CREATED);
                Ok(with_cookie(reply, "").trail(trail))
            }
            _ => Err(Failure::not_found(&call.path)),
        }
    }

    async fn pass_on(&self, target: &Target, path: &str) -> Result<Reply, Failure> {
        let mut trail = Trail::default();
        let body = target.ask(Message::get(path), &mut trail).await?;
        Ok(Reply::bytes("application/json", body).trail(trail))
    }

    async fn get<T: DeserializeOwned>(
        &self,
        target: &Target,
        path: String,
        trail: &mut Trail,
    ) -> Result<T, Failure> {
        understood(&target.ask(Message::get(path), trail).await?)
    }

    async fn read_cart(&self, call: &Call, trail: &mut Trail) -> Result<Priced, Failure> {
        let token = cart_token(call);
        self.get(&self.cart, format!("/cart?token={token}"), trail).await
    }

    async fn change_cart(
        &self,
        call: &Call,
        change: CartChange,
        trail: &mut Trail,
    ) -> Result<Priced, Failure> {
        let change = Change {
            token: cart_token(call),
            sku: Some(change.sku),
            add: change.add,
            quantity: change.quantity,
        };
        let key = call.idempotency_key().unwrap_or_else(new_key);
        understood(&self.cart.ask(Message::post("/cart", &key, &change), trail).await?)
    }

    async fn check_out(
        &self,
        call: &Call,
        checkout: Checkout,
        key: &str,
        trail: &mut Trail,
    ) -> Result<Order, Failure> {
        if checkout.items.len() > MAX_LINES {
            let why = format!("at most {MAX_LINES} different products, please");
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, why));
        }
        let mut cart = Priced::default();
        if checkout.items.is_empty() {
            cart = self.read_cart(call, trail).await?;
        }
        for item in checkout.items {
            let change = Change {
                token: cart.token,
                sku: Some(item.sku),
                add: None,
                quantity: Some(item.quantity),
            };
            let put = Message::post("/cart", key, &change);
            cart = understood(&self.cart.ask(put, trail).await?)?;
        }
        let wish = Wish { name: checkout.name, lines: cart.lines };
        understood(&self.orders.ask(Message::post("/orders", key, &wish), trail).await?)
    }

    /// A form, sent by the browser itself or by the page's script.
    async fn form(&self, call: &Call) -> Result<Reply, Failure> {
        let fragment = call.headers.contains_key(X_FRAGMENT);
        match self.form_outcome(call).await {
            Ok((outcome, trail)) => {
                let (html, token, place) = match &outcome {
                    Outcome::Cart(cart) => {
                        (render::cart(cart, &new_key()), cart.token.as_str(), "/#cart".to_owned())
                    }
                    Outcome::Order(order) => {
                        (render::thanks(order), "", format!("/order/{}#cart", order.id))
                    }
                };
                let reply = match fragment {
                    true => Reply::html(html),
                    false => Reply::html(String::new())
                        .status(StatusCode::SEE_OTHER)
                        .header(LOCATION, &place),
                };
                Ok(with_cookie(reply, token).trail(trail))
            }
            Err(failure) if fragment => Err(failure),
            Err(failure) => {
                let status = failure.status;
                Ok(self.page(call, Some(failure), Panel::Cart).await.status(status))
            }
        }
    }

    async fn form_outcome(&self, call: &Call) -> Result<(Outcome, Trail), Failure> {
        let form = std::str::from_utf8(&call.body)
            .map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "the form is not text"))?;
        let mut trail = Trail::default();
        if call.path == "/cart" {
            let number = |name| form_value(form, name).and_then(|text| text.parse().ok());
            let change = CartChange {
                sku: form_value(form, "sku").unwrap_or_default(),
                add: number("add"),
                quantity: number("quantity"),
            };
            let cart = self.change_cart(call, change, &mut trail).await?;
            return Ok((Outcome::Cart(cart), trail));
        }
        let name = form_value(form, "name").unwrap_or_default();
        let key = form_value(form, "key").filter(|key| !key.is_empty()).unwrap_or_else(new_key);
        let checkout = Checkout { name, items: Vec::new() };
        let order = self.check_out(call, checkout, &key, &mut trail).await?;
        Ok((Outcome::Order(order), trail))
    }

    /// The whole page. It comes even when another service is away, and then says so, with that failure's status.
    async fn page(&self, call: &Call, mut notice: Option<Failure>, panel: Panel) -> Reply {
        let mut trail = Trail::default();
        let mut cart_trail = Trail::default();
        let (assortment, cart) = tokio::join!(
            self.get::<Assortment>(&self.catalog, "/products".into(), &mut trail),
            async {
                match panel {
                    Panel::Cart if call.cookie(COOKIE).is_none() => Ok(Priced::default()),
                    Panel::Cart => self.read_cart(call, &mut cart_trail).await,
                    Panel::Thanks(..) => Ok(Priced::default()),
                }
            }
        );
        trail.join(cart_trail);
        let mut status = StatusCode::OK;
        let mut noticed = |failure: Failure| {
            status = failure.status;
            notice.get_or_insert(failure);
        };
        let products = assortment.map(|all| all.products).unwrap_or_else(|failure| {
            noticed(failure);
            Vec::new()
        });
        let cart = cart.unwrap_or_else(|failure| {
            noticed(failure);
            Priced::default()
        });
        let panel = match panel {
            Panel::Cart => render::cart(&cart, &new_key()),
            Panel::Thanks(order, order_trail) => {
                trail.join(order_trail);
                render::thanks(&order)
            }
        };
        let notice = notice.map(|failure| failure.message).unwrap_or_default();
        let hops = format!("{}, {}", self.own_hop, trail.to_header());
        let html = render::page(&products, &panel, cart.count, &notice, &hops);
        let reply = Reply::html(html).status(status).trail(trail);
        reply.header(hyper::header::CACHE_CONTROL, "no-store")
    }
}

/// What stands in the page's side panel.
enum Panel {
    Cart,
    Thanks(Box<Order>, Trail),
}

enum Outcome {
    Cart(Priced),
    Order(Order),
}

/// The caller's cart; a cookie that can't be a token is no cart.
fn cart_token(call: &Call) -> String {
    let token = call.cookie(COOKIE).unwrap_or_default();
    let plain = token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if plain { token.to_owned() } else { String::new() }
}

fn with_cookie(reply: Reply, token: &str) -> Reply {
    let seconds = if token.is_empty() { 0 } else { COOKIE_SECONDS };
    let cookie = format!("{COOKIE}={token}; Max-Age={seconds}; {COOKIE_ATTRIBUTES}");
    reply.header(SET_COOKIE, &cookie)
}

fn understood<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(StatusCode::BAD_GATEWAY, format!("a service sent something odd: {error}"))
    })
}

/// An idempotency key for a customer who sent none.
fn new_key() -> String {
    let mut dice = Dice::new();
    format!("{:016x}{:016x}", dice.next_u64(), dice.next_u64())
}
