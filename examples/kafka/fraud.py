"""Every order is looked at; those of one customer one at a time, in the order that Kafka has for the key."""

from dataclasses import dataclass

from broker_faas import function


@dataclass
class Order:
    number: int
    customer: str
    amount: float  # EUR
    card: str  # the country that the card is from
    to: str  # the country that it is sent to


@function(on="orders.placed", sends="orders.held", ordered=True)
async def check(order: Order) -> dict[str, object] | None:
    """Hold what is dear and goes where the card is not from. What is returned is an event; nothing is none."""
    if order.amount < 1000 or order.card == order.to:
        return None
    return {"number": order.number, "why": f"{order.amount:,.2f} EUR, with a card from {order.card}, to {order.to}"}


@dataclass
class Held:
    number: int
    why: str


@function(on="orders.held")
async def tell(held: Held) -> None:
    print(f"order {held.number} is held: {held.why}")
