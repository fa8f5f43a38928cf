//! The storefront's HTML: fills the template `page.html` and writes its two changing pieces, the products and the side
//! panel. Everything that comes from elsewhere is escaped. No I/O.

use std::fmt::Write;

use crate::cart::{Line, Priced};
use crate::catalog::Product;
use crate::ledger::Order;

const TEMPLATE: &str = include_str!("page.html");
/// The tab's picture.
pub const ICON: &str = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>\
    <rect width='32' height='32' rx='6' fill='#14304a'/><path d='M8 6v21' stroke='#fff' stroke-width='2.5'/>\
    <path d='M10 7l16 6-16 6z' fill='#ffc531'/></svg>";

/// The whole page.
pub fn page(products: &[Product], panel: &str, count: u32, notice: &str, trail: &str) -> String {
    let mut page = String::with_capacity(TEMPLATE.len() + 12_000);
    let mut rest = TEMPLATE;
    // One pass, so that nothing filled in can be taken for a place to fill in.
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        match name {
            "products" => products.iter().for_each(|product| card(&mut page, product)),
            "panel" => page.push_str(panel),
            "count" => page.push_str(&count.to_string()),
            "notice" => page.push_str(&escape(notice)),
            "notice-hidden" if notice.is_empty() => page.push_str("hidden"),
            "trail" => page.push_str(&escape(trail)),
            _ => {}
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

fn card(page: &mut String, product: &Product) {
    let (sku, name) = (escape(&product.sku), escape(&product.name));
    let blurb = escape(&product.blurb);
    let price = euros(product.price_cents);
    let was = match product.list_price_cents > product.price_cents {
        true => format!(" <s>{}</s>", euros(product.list_price_cents)),
        false => String::new(),
    };
    // Writing to a string can't fail.
    let _ = write!(
        page,
        "<li class=\"card\" data-sku=\"{sku}\"><div class=\"art\"><svg aria-hidden=\"true\"><use href=\"#p-{sku}\"/>\
         </svg></div><h3>{name}</h3><p>{blurb}</p><form method=\"post\" action=\"/cart\" data-live>\
         <input type=\"hidden\" name=\"sku\" value=\"{sku}\"><span class=\"price\">{price}{was}</span>\
         <button name=\"add\" value=\"1\" aria-label=\"Add {name} to the cart\">Add</button></form></li>"
    );
}

/// The side panel with a cart; `key` makes a checkout that is sent twice one order.
pub fn cart(cart: &Priced, key: &str) -> String {
    if cart.lines.is_empty() {
        return "<div data-count=\"0\"><h2>Your cart</h2><p class=\"empty\">Nothing in it yet. \
                Most people begin with the mug.</p></div>"
            .to_owned();
    }
    let mut html =
        format!("<div data-count=\"{}\"><h2>Your cart</h2><ul class=\"lines\">", cart.count);
    for line in &cart.lines {
        let (sku, name) = (escape(&line.sku), escape(&line.name));
        let (less, more) = (line.quantity.saturating_sub(1), line.quantity + 1);
        let _ = write!(
            html,
            "<li><svg aria-hidden=\"true\"><use href=\"#p-{sku}\"/></svg><span class=\"what\">{name}\
             <small>{each}</small></span><form method=\"post\" action=\"/cart\" data-live class=\"quantity\">\
             <input type=\"hidden\" name=\"sku\" value=\"{sku}\">\
             <button name=\"quantity\" value=\"{less}\" aria-label=\"One {name} less\">−</button>\
             <b>{quantity}</b>\
             <button name=\"quantity\" value=\"{more}\" aria-label=\"One {name} more\">+</button></form></li>",
            each = euros(line.price_cents),
            quantity = line.quantity,
        );
    }
    let _ = write!(
        html,
        "</ul><p class=\"total\"><span>Total</span><b>{total}</b></p>\
         <form method=\"post\" action=\"/checkout\" data-live class=\"checkout\">\
         <input type=\"hidden\" name=\"key\" value=\"{key}\"><label>Your name\
         <input name=\"name\" required maxlength=\"80\" autocomplete=\"name\"></label>\
         <button>Place the order</button></form></div>",
        total = euros(cart.total_cents),
    );
    html
}

/// The side panel after a purchase.
pub fn thanks(order: &Order) -> String {
    let mut html = format!(
        "<div data-count=\"0\" class=\"thanks\"><h2>Thank you{}!</h2>\
         <p>Order <b class=\"number\">{}</b> is on disk, and will still be there if every instance dies now.</p>\
         <ul class=\"lines\">",
        match order.name.trim() {
            "" => String::new(),
            name => format!(", {}", escape(name)),
        },
        escape(&order.id),
    );
    for Line { sku, name, quantity, price_cents } in &order.lines {
        let _ = write!(
            html,
            "<li><svg aria-hidden=\"true\"><use href=\"#p-{}\"/></svg><span class=\"what\">{}<small>{} × {}</small>\
             </span></li>",
            escape(sku),
            escape(name),
            quantity,
            euros(*price_cents),
        );
    }
    let _ = write!(
        html,
        "</ul><p class=\"total\"><span>Paid</span><b>{}</b></p><p class=\"fine\">Payment {}, \
         written down by {}.</p><a class=\"again\" href=\"/\">Back to the shop</a></div>",
        euros(order.total_cents),
        escape(&order.payment),
        escape(&order.written_by),
    );
    html
}

fn euros(cents: u64) -> String {
    format!("€{}.{:02}", cents / 100, cents % 100)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_read_well() {
        assert_eq!(euros(4905), "€49.05");
        assert_eq!(euros(7), "€0.07");
    }

    #[test]
    fn names_can_not_become_markup() {
        let order = Order {
            id: "X".into(),
            placed_ms: 0,
            name: "<script>\"'&".into(),
            lines: vec![],
            total_cents: 0,
            payment: "P".into(),
            written_by: "w".into(),
        };
        let html = thanks(&order);
        assert!(html.contains("&lt;script&gt;&quot;&#39;&amp;"), "{html}");
        assert!(!html.contains("<script"));
    }

    #[test]
    fn the_template_is_filled_completely_and_once() {
        let page = page(&[], "PANEL {{notice}}", 3, "it <broke>", "t");
        assert!(page.contains("PANEL {{notice}}"), "what was filled in is not filled again");
        assert!(page.contains("it &lt;broke&gt;"));
        assert_eq!(page.matches("{{").count(), 1);
    }

    #[test]
    fn every_product_has_a_picture() {
        let catalog = crate::catalog::Catalog::new(0);
        for product in catalog.products() {
            assert!(TEMPLATE.contains(&format!("id=\"p-{}\"", product.sku)), "{}", product.sku);
        }
    }
}
