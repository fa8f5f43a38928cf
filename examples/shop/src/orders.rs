//! What customers bought. `POST /orders` (with `Idempotency-Key`) charges through `payments` and writes the order down;
//! `GET /orders` → the newest; `GET /orders/{id}` → one. An order is acknowledged only when it is on disk.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::cart::Line;
use crate::client::{Message, Target, Url};
use crate::http::{Call, Failure, Reply, Trail};
use crate::ledger::{Ledger, Order, number_from_key};
use crate::payments::{Charge, Paid};

/// Longest name that is kept.
const MAX_NAME_CHARS: usize = 80;

/// The service.
#[derive(Debug)]
pub struct Orders {
    ledger: Ledger,
    instance: String,
    payments: Target,
}

/// An order to be placed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wish {
    /// Who it is for.
    pub name: String,
    /// What, at which price.
    pub lines: Vec<Line>,
}

impl Orders {
    /// Opens the orders file in `folder`.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(folder: &Path, instance: String, payments: Url) -> io::Result<Orders> {
        let payments = Target::new("payments", payments);
        Ok(Orders { ledger: Ledger::open(folder)?, instance, payments })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// 400 without key or lines, 402 if the card is declined, what `payments` failed with, or what the file failed with.
    pub async fn answer(&self, call: &Call) -> Result<Reply, Failure> {
        match (call.method.clone(), call.path.as_str()) {
            (Method::GET, "/orders") => Ok(Reply::json(&self.ledger.recent().await?)),
            (Method::POST, "/orders") => self.place(call).await,
            (Method::GET, path) => match path.strip_prefix("/orders/") {
                Some(id) => self
                    .ledger
                    .find(id.to_owned())
                    .await?
                    .map(|order| Reply::json(&order))
                    .ok_or_else(|| Failure::not_found(path)),
                None => Err(Failure::not_found(path)),
            },
            _ => Err(Failure::not_found(&call.path)),
        }
    }

    async fn place(&self, call: &Call) -> Result<Reply, Failure> {
        let bad = |why: &str| Failure::new(StatusCode::BAD_REQUEST, why);
        let wish: Wish = call.json()?;
        let key = call
            .idempotency_key()
            .ok_or_else(|| bad("an order needs an Idempotency-Key header"))?;
        if wish.lines.is_empty() {
            return Err(bad("The cart is empty: put something in first."));
        }
        let id = number_from_key("order", &key);
        if let Some(standing) = self.ledger.find(id.clone()).await? {
            return Ok(Reply::json(&standing));
        }
        let total_cents =
            wish.lines.iter().map(|line| line.price_cents * u64::from(line.quantity)).sum();
        let mut trail = Trail::default();
        let charge = Message::post("/charges", &key, &Charge { amount_cents: total_cents });
        let paid = self.payments.ask(charge, &mut trail).await?;
        let paid: Paid = serde_json::from_slice(&paid).map_err(|error| {
            Failure::new(StatusCode::BAD_GATEWAY, format!("payments sent something odd: {error}"))
        })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let order = Order {
            id,
            placed_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            name: wish.name.chars().take(MAX_NAME_CHARS).collect(),
            lines: wish.lines,
            total_cents,
            payment: paid.payment,
            written_by: self.instance.clone(),
        };
        let order = self.ledger.append(order).await?;
        Ok(Reply::json(&order).status(StatusCode::CREATED).trail(trail))
    }
}
