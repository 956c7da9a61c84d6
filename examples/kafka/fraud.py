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


@function(on="orders.placed", sends="warehouse:example-held", ordered=True)
async def check(order: Order) -> dict[str, object] | None:
    """Hold what is dear and goes where the card is not from. What is returned leaves for the topic `example-held` of Kafka."""
    if order.amount < 1000 or order.card == order.to:
        return None
    why = f"{order.amount:,.2f} EUR, with a card from {order.card}, to {order.to}"
    print(f"order {order.number} is held: {why}")
    return {"number": order.number, "why": why}
