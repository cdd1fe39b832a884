/* A receiver of `feeder` in C, small enough to begin one's own with; written from docs/protocol.md alone.
 *
 *     cc -std=c11 -O2 -o receiver tools/receiver.c && ./receiver --seconds 10
 *
 * Joins the packets in sequence and the snapshot loop of one line, names every gap, keeps each instrument's book, and
 * prints the best bid and ask of live books when they change. Heals by the snapshot loop; asks nobody for anything.
 *
 *     datagram - valid() -+- on_sequenced() - on_message() -+- collect() its parts - apply() -> book
 *                         +- on_loop() - a whole copy at S -+- take(), and apply() INCREMENTs from S on, kept till then
 *
 * A book is in step while its `era` is its channel's; a gap gives the channel a new era, and so takes all books out
 * of step at once. Era 0 is no channel's. What cannot be kept within MAX_BYTES leaves its book out of step, counted.
 * Not here: other lines, retransmission, verifying signatures.
 * Exit codes: 0 all heard, 1 nothing heard, 2 wrong usage or host, 3 messages were lost.
 */
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#include "feeder.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef MAX_BYTES                       /* tests make the limits small */
#define MAX_BYTES (256 << 20)           /* of memory for channels, instruments, books and what waits */
#define MAX_LEVELS 262144               /* of a side: three times the greatest depth, and an event's own */
#define MAX_KEPT 512                    /* INCREMENTs of an instrument out of step */
#endif
#define TURN 64                         /* datagrams of one socket before the other is looked at */
#define SECOND INT64_C(1000000000)

typedef struct feeder_packet_header Packet;
typedef struct feeder_message_header Message;
typedef struct feeder_order_book_item Level;
typedef struct feeder_definition Definition;

typedef struct {
    Level *items;
    size_t count, room;
} Levels;

typedef struct {                        /* an INCREMENT or SNAPSHOT, its parts put together */
    uint64_t first, last;               /* numbers of its messages */
    uint64_t venue_sequence;
    uint32_t epoch, era;
    uint16_t type;
    bool is_open;
    Levels bids, asks;
} Event;

typedef struct {                        /* an instrument as the snapshot loop tells it, whole */
    uint64_t at;                        /* holds after every message below, and before this one */
    uint32_t instrument_id, epoch;
    uint8_t state, edition;
    enum { NOTHING, DEFINED, BEGUN } progress;
    Definition definition;
    Levels bids, asks;
} Copy;

typedef struct {
    Definition definition;
    bool is_defined;                    /* by a definition of the edition that its last message was of */
    uint8_t edition;
    uint8_t state;                      /* what its last message said, and that message's number */
    uint32_t epoch;
    uint64_t said_at;
    uint32_t era;                       /* the book's */
    bool has_book;
    Levels bids, asks;                  /* sorted, the best level last: that is where changes are */
    Level shown_bid, shown_ask;
    Event parts;
    Event *kept;                        /* complete for all numbers from complete_from on, if of the present era */
    size_t kept_count, kept_room;
    uint32_t kept_era;
    uint64_t complete_from;
    Copy waiting;                       /* for the packets below waiting.at; progress NOTHING: there is none */
} Instrument;

typedef struct {
    unsigned number;
    uint64_t session, expected;
    uint64_t era_from;                  /* the first number of the present era: nothing was lost from there on */
    int64_t heard_ns;
    uint32_t era;
    bool has_ended, is_silent;
    Instrument **instruments;
    size_t room, waiting_count;
    uint32_t loop_last;
    Copy copy;                          /* being put together */
} Channel;

static struct {
    uint64_t packets, messages, trades, gaps, lost, late, malformed, stragglers, sessions, loop_packets, loop_lost,
        rounds, from_sequence, from_loop, mismatched, unordered, crossed, no_memory;
} counts;

static Channel *channels[65536];
static size_t used_bytes;
static bool is_quiet, has_loop;
static int64_t now_ns;                  /* of a clock that does not jump; when the datagram in hand was read */
static volatile sig_atomic_t is_interrupted;

/* -- memory, bounded ---------------------------------------------------------------------------------------------- */

static void *resize(void *old, size_t old_bytes, size_t new_bytes) {
    void *new = NULL;
    if (used_bytes - old_bytes + new_bytes <= MAX_BYTES)
        new = realloc(old, new_bytes);
    if (!new) {
        counts.no_memory++;
        return NULL;
    }
    used_bytes = used_bytes - old_bytes + new_bytes;
    return new;
}

static void release(void *old, size_t old_bytes) {
    free(old);
    used_bytes -= old ? old_bytes : 0;
}

static void clear_levels(Levels *levels) {
    release(levels->items, levels->room * sizeof(Level));
    *levels = (Levels){0};
}

static bool make_room(Levels *levels, size_t count) {
    size_t room = levels->room ? levels->room : 32;
    if (count <= levels->room)
        return true;
    if (count > MAX_LEVELS) {
        counts.no_memory++;
        return false;
    }
    while (room < count)
        room *= 2;
    Level *items = resize(levels->items, levels->room * sizeof(Level), room * sizeof(Level));
    if (!items)
        return false;
    levels->items = items;
    levels->room = room;
    return true;
}

static bool append(Levels *levels, const unsigned char *from, size_t count) {
    if (!make_room(levels, levels->count + count))
        return false;
    if (count)
        memcpy(levels->items + levels->count, from, count * sizeof(Level));
    levels->count += count;
    return true;
}

static void clear_event(Event *event) {
    clear_levels(&event->bids);
    clear_levels(&event->asks);
    *event = (Event){0};
}

static void clear_copy(Copy *copy) {
    clear_levels(&copy->bids);
    clear_levels(&copy->asks);
    *copy = (Copy){0};
}

static void forget_kept(Instrument *instrument) {
    for (size_t at = 0; at < instrument->kept_count; at++)
        clear_event(&instrument->kept[at]);
    instrument->kept_count = 0;
}

static void clear_channel(Channel *channel) {
    for (size_t id = 0; id < channel->room; id++) {
        Instrument *instrument = channel->instruments[id];
        if (!instrument)
            continue;
        forget_kept(instrument);
        release(instrument->kept, instrument->kept_room * sizeof(Event));
        clear_event(&instrument->parts);
        clear_copy(&instrument->waiting);
        clear_levels(&instrument->bids);
        clear_levels(&instrument->asks);
        release(instrument, sizeof(Instrument));
    }
    release(channel->instruments, channel->room * sizeof(Instrument *));
    clear_copy(&channel->copy);
    *channel = (Channel){0};
}

/* -- telling ------------------------------------------------------------------------------------------------------ */

static void put_text(const char *field, size_t size) {          /* anybody may have sent it: no control characters */
    for (size_t at = 0; at < size && field[at]; at++)
        putchar(field[at] > ' ' && field[at] < 127 ? field[at] : '?');
}

static void put_number(int64_t value, int exponent) {           /* exact; without zeros at the end */
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    char digits[32];
    int decimals = -exponent;
    int length = snprintf(digits, sizeof digits, "%0*" PRIu64, decimals + 1, magnitude);
    int end = length;
    while (end > length - decimals && digits[end - 1] == '0')
        end--;
    printf("%s%.*s", value < 0 ? "-" : "", length - decimals, digits);
    if (end > length - decimals)
        printf(".%.*s", end - (length - decimals), digits + length - decimals);
}

static void put_instrument(const Channel *channel, const Definition *definition) {
    printf(" %u ", channel->number);
    put_text(definition->venue, sizeof definition->venue);
    putchar(' ');
    put_text(definition->symbol, sizeof definition->symbol);
}

static void put_level(const Levels *side, size_t at, const Definition *definition) {
    put_number(side->items[at].price, definition->price_exponent);
    putchar(':');
    put_number(side->items[at].quantity, definition->quantity_exponent);
}

static Level best(const Levels *side) {
    return side->count ? side->items[side->count - 1] : (Level){0, 0};
}

static bool same_level(Level one, Level other) {
    return one.price == other.price && one.quantity == other.quantity;
}

static bool is_heard(const Channel *channel) {
    return !channel->has_ended && now_ns - channel->heard_ns <= FEEDER_SILENCE_S * SECOND;
}

static void show_best(const Channel *channel, Instrument *instrument) {
    Level bid = best(&instrument->bids), ask = best(&instrument->asks);
    if (is_quiet || !is_heard(channel)
        || (same_level(bid, instrument->shown_bid) && same_level(ask, instrument->shown_ask)))
        return;
    instrument->shown_bid = bid;
    instrument->shown_ask = ask;
    printf("best");
    put_instrument(channel, &instrument->definition);
    const Levels *sides[] = {&instrument->bids, &instrument->asks};
    for (size_t side = 0; side < 2; side++) {
        putchar(' ');
        if (sides[side]->count)
            put_level(sides[side], sides[side]->count - 1, &instrument->definition);
        else
            putchar('-');
    }
    putchar('\n');
}

/* -- books -------------------------------------------------------------------------------------------------------- */

static bool set_level(Levels *side, bool is_bid, Level level) {
    size_t low = 0, high = side->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int64_t price = side->items[middle].price;
        if (is_bid ? price < level.price : price > level.price)
            low = middle + 1;
        else
            high = middle;
    }
    bool is_known = low < side->count && side->items[low].price == level.price;
    if (level.quantity && is_known) {
        side->items[low].quantity = level.quantity;
    } else if (level.quantity) {
        if (!make_room(side, side->count + 1))
            return false;
        memmove(side->items + low + 1, side->items + low, (side->count - low) * sizeof(Level));
        side->items[low] = level;
        side->count++;
    } else if (is_known) {
        side->count--;
        memmove(side->items + low, side->items + low + 1, (side->count - low) * sizeof(Level));
    }
    return true;
}

static bool apply(Instrument *instrument, const Event *event) {
    for (size_t at = 0; at < event->bids.count; at++)
        if (!set_level(&instrument->bids, true, event->bids.items[at]))
            return false;
    for (size_t at = 0; at < event->asks.count; at++)
        if (!set_level(&instrument->asks, false, event->asks.items[at]))
            return false;
    return true;
}

static bool is_ordered(const Levels *told, bool is_bid) {  /* as a SNAPSHOT has to be: best first, no quantity 0 */
    for (size_t at = 0; at < told->count; at++) {
        if (!told->items[at].quantity)
            return false;
        if (at && (is_bid ? told->items[at].price >= told->items[at - 1].price
                          : told->items[at].price <= told->items[at - 1].price))
            return false;
    }
    return true;
}

static bool replace(Instrument *instrument, Levels *bids, Levels *asks) {       /* takes the levels over */
    if (!is_ordered(bids, true) || !is_ordered(asks, false)) {
        counts.unordered++;
        return false;
    }
    Levels *told[] = {bids, asks}, *sides[] = {&instrument->bids, &instrument->asks};
    for (size_t side = 0; side < 2; side++) {
        clear_levels(sides[side]);
        *sides[side] = *told[side];
        *told[side] = (Levels){0};
        for (size_t low = 0, high = sides[side]->count; low + 1 < high; low++) {
            Level level = sides[side]->items[low];
            sides[side]->items[low] = sides[side]->items[--high];
            sides[side]->items[high] = level;
        }
    }
    instrument->has_book = true;
    return true;
}

static bool is_same_side(const Levels *side, const Levels *told) {
    if (side->count != told->count)
        return false;
    for (size_t at = 0; at < told->count; at++)
        if (!same_level(side->items[side->count - 1 - at], told->items[at]))
            return false;
    return true;
}

static bool is_same_book(const Instrument *instrument, const Levels *bids, const Levels *asks) {
    return is_same_side(&instrument->bids, bids) && is_same_side(&instrument->asks, asks);
}

static void count_crossed(const Instrument *instrument) {       /* published only while the venue has an auction */
    counts.crossed += instrument->bids.count && instrument->asks.count
                      && best(&instrument->bids).price > best(&instrument->asks).price;
}

/* The same but for tick and lot: its integers are of the same scale. */
static bool is_same_definition(const Definition *one, const Definition *other) {
    return one->price_exponent == other->price_exponent && one->quantity_exponent == other->quantity_exponent
           && one->depth == other->depth && one->shared == other->shared
           && !memcmp(one->venue, other->venue, sizeof one->venue)
           && !memcmp(one->symbol, other->symbol, sizeof one->symbol)
           && !memcmp(one->name, other->name, sizeof one->name);
}

static void forget_book(Instrument *instrument) {
    clear_levels(&instrument->bids);
    clear_levels(&instrument->asks);
    clear_event(&instrument->parts);
    instrument->has_book = false;
    instrument->era = 0;
}

static void define(Instrument *instrument, const Definition *definition, uint8_t edition) {
    if (instrument->is_defined && !is_same_definition(&instrument->definition, definition))
        forget_book(instrument);
    instrument->definition = *definition;
    instrument->edition = edition;
    instrument->is_defined = true;
}

/* -- what the snapshot loop told, and INCREMENTs kept for it ------------------------------------------------------ */

static void keep(Channel *channel, Instrument *instrument) {     /* takes the collected event over */
    if (instrument->kept_era != channel->era) {
        forget_kept(instrument);
        instrument->kept_era = channel->era;
    }
    if (instrument->kept_count == MAX_KEPT) {                    /* the older half goes */
        size_t gone = MAX_KEPT / 2;
        instrument->complete_from = instrument->kept[gone - 1].last + 1;
        for (size_t at = 0; at < gone; at++)
            clear_event(&instrument->kept[at]);
        memmove(instrument->kept, instrument->kept + gone, (instrument->kept_count - gone) * sizeof(Event));
        instrument->kept_count -= gone;
    }
    if (instrument->kept_count == instrument->kept_room) {
        size_t room = instrument->kept_room ? 2 * instrument->kept_room : 16;
        Event *kept = resize(instrument->kept, instrument->kept_room * sizeof(Event), room * sizeof(Event));
        if (!kept) {
            forget_kept(instrument);
            instrument->complete_from = instrument->parts.last + 1;
            clear_event(&instrument->parts);
            return;
        }
        instrument->kept = kept;
        instrument->kept_room = room;
    }
    instrument->kept[instrument->kept_count++] = instrument->parts;
    instrument->parts = (Event){0};
}

/* Take a copy that is not ahead, and on top what came since. False: it is of no use, wait for the next round. */
static bool take(Channel *channel, Instrument *instrument, Copy *copy) {
    if (copy->at < channel->era_from || copy->at < instrument->complete_from)
        return false;                                            /* something is missing since */
    if (instrument->said_at >= copy->at && (instrument->state != FEEDER_LIVE || instrument->epoch != copy->epoch))
        return false;                                            /* the book is another one by now */
    define(instrument, &copy->definition, copy->edition);
    instrument->era = 0;
    if (!replace(instrument, &copy->bids, &copy->asks))
        return false;
    if (instrument->kept_era == channel->era) {
        for (size_t at = 0; at < instrument->kept_count; at++) {
            if (instrument->kept[at].first < copy->at)
                continue;
            if (instrument->kept[at].epoch != copy->epoch || !apply(instrument, &instrument->kept[at]))
                return false;
        }
    }
    count_crossed(instrument);
    forget_kept(instrument);
    clear_event(&instrument->parts);
    instrument->state = FEEDER_LIVE;
    instrument->epoch = copy->epoch;
    instrument->era = channel->era;
    counts.from_loop++;
    return true;
}

static void stop_waiting(Channel *channel, Instrument *instrument) {
    if (instrument->waiting.progress != NOTHING)
        channel->waiting_count--;
    clear_copy(&instrument->waiting);
}

static void offer(Channel *channel, Instrument *instrument, Copy *copy) {
    if (instrument->era == channel->era) {                       /* in step: a chance to compare */
        if (copy->at != channel->expected)
            return;
        if (copy->state == FEEDER_LIVE && copy->epoch == instrument->epoch
            && is_same_definition(&instrument->definition, &copy->definition)
            && is_same_book(instrument, &copy->bids, &copy->asks))
            return;
        counts.mismatched++;
        printf("mismatch");
        put_instrument(channel, &instrument->definition);
        printf(" at %" PRIu64 "\n", copy->at);
        instrument->era = 0;
    }
    if (copy->state != FEEDER_LIVE) {                            /* no book now, but its definition is worth having */
        if (copy->at >= channel->era_from && copy->at >= instrument->complete_from && copy->at <= channel->expected)
            define(instrument, &copy->definition, copy->edition);
    } else if (copy->at > channel->expected) {
        stop_waiting(channel, instrument);
        instrument->waiting = *copy;
        *copy = (Copy){0};
        channel->waiting_count++;
    } else if (take(channel, instrument, copy)) {
        show_best(channel, instrument);
    }
}

static void look_at_waiting(Channel *channel) {
    for (size_t id = 0; id < channel->room && channel->waiting_count; id++) {
        Instrument *instrument = channel->instruments[id];
        if (!instrument || instrument->waiting.progress == NOTHING || instrument->waiting.at > channel->expected)
            continue;
        if (instrument->era != channel->era && take(channel, instrument, &instrument->waiting))
            show_best(channel, instrument);
        stop_waiting(channel, instrument);
    }
}

/* -- packets ------------------------------------------------------------------------------------------------------ */

static size_t body_bytes(unsigned type) {                        /* of a type of fixed size; else 0 */
    switch (type) {
    case FEEDER_DEFINITION: return sizeof(Definition);
    case FEEDER_TRADE: return sizeof(struct feeder_trade_item);
    case FEEDER_BBO: return sizeof(struct feeder_bbo);
    case FEEDER_STATUS: return sizeof(struct feeder_status);
    case FEEDER_ROUND: return sizeof(struct feeder_round);
    default: return 0;
    }
}

static bool has_state(const Message *message) {
    return (message->type >= FEEDER_SNAPSHOT && message->type <= FEEDER_BBO)
           || (message->type == FEEDER_STATUS && message->instrument_id != FEEDER_NO_INSTRUMENT);
}

static uint8_t edition_of(const Message *message) {
    return message->flags >> FEEDER_EDITION_SHIFT;
}

static bool valid_message(const Message *message, const unsigned char *body) {
    size_t bytes = message->message_bytes - sizeof(Message);
    if (body_bytes(message->type) && bytes != body_bytes(message->type))
        return false;
    if (has_state(message) && (message->state < FEEDER_SYNCING || message->state > FEEDER_STALE))
        return false;
    if (message->type == FEEDER_SNAPSHOT || message->type == FEEDER_INCREMENT) {
        if (bytes % sizeof(Level) || message->bid_count > bytes / sizeof(Level))
            return false;
        for (size_t at = 0; at < bytes; at += sizeof(Level)) {
            Level level;
            memcpy(&level, body + at, sizeof level);
            if (level.quantity < 0)
                return false;
        }
    } else if (message->type == FEEDER_TRADE) {
        struct feeder_trade_item trade;
        memcpy(&trade, body, sizeof trade);
        return trade.side == FEEDER_BUY || trade.side == FEEDER_SELL;
    } else if (message->type == FEEDER_DEFINITION) {
        Definition definition;
        memcpy(&definition, body, sizeof definition);
        return definition.price_exponent >= -18 && definition.price_exponent <= 0
               && definition.quantity_exponent >= -18 && definition.quantity_exponent <= 0;
    }
    return true;
}

static bool valid(const unsigned char *data, size_t size, Packet *packet) {
    if (size < sizeof *packet)
        return false;
    memcpy(packet, data, sizeof *packet);
    if (packet->magic != FEEDER_MAGIC || packet->version != FEEDER_VERSION || packet->packet_bytes != size)
        return false;
    if (packet->flags & FEEDER_SIGNED) {
        if (size < sizeof *packet + FEEDER_TRAILER_BYTES)
            return false;
        size -= FEEDER_TRAILER_BYTES;
    }
    if (packet->flags & FEEDER_SNAPSHOTS
        && (packet->flags & (FEEDER_HEARTBEAT | FEEDER_END) || !packet->message_count))
        return false;
    if (!packet->sequence || packet->sequence + packet->message_count < packet->sequence)
        return false;
    size_t at = sizeof *packet;
    for (unsigned count = packet->message_count; count; count--) {
        Message message;
        if (size - at < sizeof message)
            return false;
        memcpy(&message, data + at, sizeof message);
        if (message.message_bytes < sizeof message || message.message_bytes % 8 || message.message_bytes > size - at
            || !valid_message(&message, data + at + sizeof message))
            return false;
        at += message.message_bytes;
    }
    return at == size;
}

/* Returns NULL where the number is none of an instrument's, or there is no memory for it. */
static Instrument *instrument_of(Channel *channel, uint32_t id) {
    if (id >= FEEDER_INSTRUMENTS)
        return NULL;
    if (id >= channel->room) {
        size_t room = channel->room ? channel->room : 64, bytes = sizeof *channel->instruments;
        while (room <= id)
            room *= 2;
        Instrument **instruments = resize(channel->instruments, channel->room * bytes, room * bytes);
        if (!instruments)
            return NULL;
        memset(instruments + channel->room, 0, (room - channel->room) * bytes);
        channel->instruments = instruments;
        channel->room = room;
    }
    if (!channel->instruments[id]) {
        Instrument *instrument = resize(NULL, 0, sizeof *instrument);
        if (!instrument)
            return NULL;
        *instrument = (Instrument){.state = FEEDER_SYNCING};
        channel->instruments[id] = instrument;
    }
    return channel->instruments[id];
}

/* Collect a SNAPSHOT's or INCREMENT's parts; true when the event is whole. */
static bool collect(Channel *channel, Instrument *instrument, uint64_t number, const Message *message,
                    const unsigned char *body) {
    Event *parts = &instrument->parts;
    size_t count = (message->message_bytes - sizeof *message) / sizeof(Level);
    if (parts->is_open && parts->era != channel->era)            /* a gap has cut it */
        clear_event(parts);
    bool is_first = message->type == FEEDER_SNAPSHOT ? message->flags & FEEDER_FIRST : !parts->is_open;
    if (is_first) {
        clear_event(parts);
        *parts = (Event){.first = number, .last = number - 1, .venue_sequence = message->venue_sequence,
                         .epoch = message->epoch, .era = channel->era, .type = message->type, .is_open = true};
    }
    if (!parts->is_open || parts->type != message->type || parts->epoch != message->epoch || parts->last + 1 != number
        || parts->venue_sequence != message->venue_sequence || !append(&parts->bids, body, message->bid_count)
        || !append(&parts->asks, body + message->bid_count * sizeof(Level), count - message->bid_count)) {
        clear_event(parts);
        instrument->era = 0;
        instrument->complete_from = number + 1;
        return false;
    }
    parts->last = number;
    parts->is_open = !(message->flags & FEEDER_LAST);
    return !parts->is_open;
}

static void on_message(Channel *channel, uint64_t number, const Message *message,
                       const unsigned char *body) {
    if (message->type != FEEDER_DEFINITION && !has_state(message))
        return;                                                  /* unknown, PADDING, a venue's STATUS */
    Instrument *instrument = instrument_of(channel, message->instrument_id);
    if (!instrument)
        return;
    if (message->type == FEEDER_DEFINITION) {
        Definition definition;
        memcpy(&definition, body, sizeof definition);
        if (instrument->is_defined && !is_same_definition(&instrument->definition, &definition)) {
            forget_kept(instrument);
            instrument->complete_from = number + 1;
        }
        define(instrument, &definition, edition_of(message));
        return;
    }
    if (instrument->is_defined && instrument->edition != edition_of(message)) {      /* the new DEFINITION was lost */
        forget_book(instrument);
        instrument->is_defined = false;
    }
    if (message->state != FEEDER_LIVE || instrument->state != FEEDER_LIVE || message->epoch != instrument->epoch)
        instrument->era = 0;
    if (message->state != FEEDER_LIVE) {
        forget_kept(instrument);
        instrument->complete_from = number + 1;
    }
    instrument->state = message->state;
    instrument->epoch = message->epoch;
    instrument->said_at = number;
    counts.trades += message->type == FEEDER_TRADE;
    if ((message->type != FEEDER_SNAPSHOT && message->type != FEEDER_INCREMENT)
        || !collect(channel, instrument, number, message, body))
        return;
    Event *event = &instrument->parts;
    if (event->type == FEEDER_INCREMENT) {
        if (instrument->era != channel->era && has_loop)
            keep(channel, instrument);
        else if (instrument->era == channel->era && !apply(instrument, event))
            instrument->era = 0;
    } else if (instrument->is_defined) {
        if (instrument->era == channel->era && message->flags & FEEDER_REFRESH
            && !is_same_book(instrument, &event->bids, &event->asks)) {
            counts.mismatched++;
            printf("mismatch");
            put_instrument(channel, &instrument->definition);
            printf(" at %" PRIu64 "\n", number);
        }
        counts.from_sequence += instrument->era != channel->era;
        instrument->era = 0;
        if (replace(instrument, &event->bids, &event->asks) && message->state == FEEDER_LIVE) {
            instrument->era = channel->era;
            forget_kept(instrument);
        }
    }
    clear_event(event);
    if (instrument->era == channel->era) {
        count_crossed(instrument);
        show_best(channel, instrument);
    }
}

static Channel *open_channel(const Packet *packet, uint64_t expected) {
    Channel *channel = channels[packet->channel];
    if (channel) {
        clear_channel(channel);
    } else {
        channel = resize(NULL, 0, sizeof *channel);
        if (!channel)
            return NULL;
        channels[packet->channel] = channel;
    }
    *channel = (Channel){.number = packet->channel, .session = packet->session, .expected = expected,
                         .era_from = expected, .era = 1, .heard_ns = now_ns};
    counts.sessions++;
    printf("session %u %" PRIu64 " from %" PRIu64 "\n", packet->channel, packet->session, expected);
    return channel;
}

static void on_sequenced(const Packet *packet, const unsigned char *data) {
    Channel *channel = channels[packet->channel];
    bool is_repeat = packet->flags & FEEDER_RETRANSMITTED;        /* opens nothing, proves nobody alive */
    if (!channel || channel->session != packet->session) {
        if (is_repeat || (channel && packet->session < channel->session && is_heard(channel))) {
            counts.stragglers++;
            return;
        }
        channel = open_channel(packet, channel ? 1 : packet->sequence);
        if (!channel)
            return;
    }
    if (!is_repeat)
        channel->heard_ns = now_ns;
    if (packet->sequence < channel->expected) {
        counts.late++;
        return;
    }
    if (packet->sequence > channel->expected) {
        printf("gap %u %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", packet->channel, packet->session, channel->expected,
               packet->sequence - 1);
        counts.gaps++;
        counts.lost += packet->sequence - channel->expected;
        channel->era = channel->era == UINT32_MAX ? 1 : channel->era + 1;
        channel->era_from = packet->sequence;
    }
    counts.messages += packet->message_count;
    channel->expected = packet->sequence + packet->message_count;
    if (!packet->message_count && packet->flags & FEEDER_END) {
        channel->has_ended = true;
        printf("end %u %" PRIu64 "\n", packet->channel, packet->session);
    }
    const unsigned char *at = data + sizeof *packet;
    for (uint64_t number = packet->sequence; number < channel->expected; number++) {
        Message message;
        memcpy(&message, at, sizeof message);
        on_message(channel, number, &message, at + sizeof message);
        at += message.message_bytes;
    }
    if (channel->waiting_count)
        look_at_waiting(channel);
}

static void on_loop(const Packet *packet, const unsigned char *data) {
    Channel *channel = channels[packet->channel];
    counts.loop_packets++;
    if (!channel)
        channel = open_channel(packet, packet->sequence);
    if (!channel || packet->session != channel->session)
        return;                              /* a new session is opened by its sequenced packets, within a second */
    Copy *copy = &channel->copy;
    int32_t step = (int32_t)(packet->loop - channel->loop_last);  /* 1, more with a loss, less if late or again */
    if (step != 1 || packet->sequence != copy->at)
        clear_copy(copy);
    if (channel->loop_last && step > 1)
        counts.loop_lost += (uint32_t)step - 1;
    if (!channel->loop_last || step > 0)
        channel->loop_last = packet->loop;
    const unsigned char *at = data + sizeof *packet;
    for (unsigned count = packet->message_count; count; count--) {
        Message message;
        memcpy(&message, at, sizeof message);
        const unsigned char *body = at + sizeof message;
        size_t levels = (message.message_bytes - sizeof message) / sizeof(Level);
        at += message.message_bytes;
        counts.rounds += message.type == FEEDER_ROUND;
        if (message.type == FEEDER_DEFINITION) {
            clear_copy(copy);
            copy->at = packet->sequence;
            copy->instrument_id = message.instrument_id;
            copy->edition = edition_of(&message);
            copy->progress = DEFINED;
            memcpy(&copy->definition, body, sizeof copy->definition);
            continue;
        }
        if ((message.type != FEEDER_SNAPSHOT && message.type != FEEDER_STATUS) || copy->progress == NOTHING
            || copy->instrument_id != message.instrument_id || copy->edition != edition_of(&message))
            continue;
        if (message.type == FEEDER_SNAPSHOT) {
            bool is_first = message.flags & FEEDER_FIRST;
            if (is_first != (copy->progress == DEFINED) || (!is_first && copy->epoch != message.epoch)
                || !append(&copy->bids, body, message.bid_count)
                || !append(&copy->asks, body + message.bid_count * sizeof(Level), levels - message.bid_count)) {
                clear_copy(copy);
                continue;
            }
        }
        copy->progress = BEGUN;
        copy->epoch = message.epoch;
        copy->state = message.state;
        if (message.flags & FEEDER_LAST) {
            Instrument *instrument = instrument_of(channel, copy->instrument_id);
            if (instrument)
                offer(channel, instrument, copy);
            clear_copy(copy);
        }
    }
}

static void on_datagram(const unsigned char *data, size_t size) {
    Packet packet;
    counts.packets++;
    if (!valid(data, size, &packet))
        counts.malformed++;
    else if (packet.flags & FEEDER_SNAPSHOTS)
        on_loop(&packet, data);
    else
        on_sequenced(&packet, data);
}

/* -- the process -------------------------------------------------------------------------------------------------- */

static int64_t steady_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

static void tell_silence(void) {
    for (size_t number = 0; number < 65536; number++) {
        Channel *channel = channels[number];
        if (!channel || channel->has_ended || channel->is_silent != is_heard(channel))
            continue;
        channel->is_silent = !channel->is_silent;
        printf("%s %zu %" PRIu64 "\n", channel->is_silent ? "silent" : "heard", number, channel->session);
    }
}

static void summary(bool with_books) {
    size_t instruments = 0, live = 0;
    for (size_t number = 0; number < 65536; number++) {
        Channel *channel = channels[number];
        for (size_t id = 0; channel && id < channel->room; id++) {
            Instrument *instrument = channel->instruments[id];
            if (!instrument || !instrument->is_defined)
                continue;
            bool is_live = instrument->era == channel->era && is_heard(channel);
            instruments++;
            live += is_live;
            if (!with_books)
                continue;
            printf("book");
            put_instrument(channel, &instrument->definition);
            printf(" %s %" PRIu32, is_live ? "live" : instrument->has_book ? "stale" : "syncing", instrument->epoch);
            const Levels *sides[] = {&instrument->bids, &instrument->asks};
            for (size_t side = 0; side < 2; side++) {
                printf(side ? " asks" : " bids");
                for (size_t at = sides[side]->count; at--;) {
                    putchar(' ');
                    put_level(sides[side], at, &instrument->definition);
                }
            }
            putchar('\n');
        }
    }
    printf("summary packets=%" PRIu64 " messages=%" PRIu64 " trades=%" PRIu64 " gaps=%" PRIu64 " lost=%" PRIu64
           " late=%" PRIu64 " malformed=%" PRIu64 " stragglers=%" PRIu64 " sessions=%" PRIu64 " loop_packets=%" PRIu64
           " loop_lost=%" PRIu64 " rounds=%" PRIu64 " from_sequence=%" PRIu64 " from_loop=%" PRIu64
           " mismatched=%" PRIu64 " unordered=%" PRIu64 " crossed=%" PRIu64 " no_memory=%" PRIu64
           " instruments=%zu live=%zu\n",
           counts.packets, counts.messages, counts.trades, counts.gaps, counts.lost, counts.late, counts.malformed,
           counts.stragglers, counts.sessions, counts.loop_packets, counts.loop_lost, counts.rounds,
           counts.from_sequence, counts.from_loop, counts.mismatched, counts.unordered, counts.crossed,
           counts.no_memory, instruments, live);
}

static int fail(const char *what) {
    fprintf(stderr, "receiver: %s: %s\n", what, strerror(errno));
    return -1;
}

/* Returns a socket that hears the group's datagrams of a port, or -1, and has said why. */
static int open_socket(const char *group, int port, const char *interface) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct ip_mreq membership = {0};
    int on = 1, buffer_bytes = 4 << 20;
    errno = EINVAL;
    if (inet_pton(AF_INET, group, &address.sin_addr) != 1)
        return fail(group);
    if (inet_pton(AF_INET, interface, &membership.imr_interface) != 1)
        return fail(interface);
    membership.imr_multiaddr = address.sin_addr;
    int found = socket(AF_INET, SOCK_DGRAM, 0);
    if (found < 0)
        return fail("socket");
    setsockopt(found, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes);     /* what the host allows of it */
    if (setsockopt(found, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on))
        return fail("SO_REUSEADDR");
#if defined(SO_REUSEPORT) && !defined(__linux__)
    setsockopt(found, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);   /* BSDs share a port by this one */
#endif
    /* Bound to the group, not to any address: other groups on the same port would come in, too. */
    if (bind(found, (struct sockaddr *)&address, sizeof address))
        return fail("bind");
    if (IN_MULTICAST(ntohl(address.sin_addr.s_addr))
        && setsockopt(found, IPPROTO_IP, IP_ADD_MEMBERSHIP, &membership, sizeof membership))
        return fail("joining the group");
    return found;
}

/* Read up to TURN datagrams; true if there may be more. */
static bool read_some(int from) {
    static unsigned char data[65536];
    for (int count = 0; count < TURN; count++) {
        ssize_t size = recv(from, data, sizeof data, MSG_DONTWAIT);
        if (size < 0)
            return errno == EINTR;
        now_ns = steady_ns();
        on_datagram(data, (size_t)size);
    }
    return true;
}

static void on_signal(int number) {
    (void)number;
    is_interrupted = 1;
}

static int usage(const char *wrong) {
    fprintf(stderr, "receiver: %s\nusage: receiver [--group ADDRESS] [--port N] [--snapshot-port N, 0: none] "
                    "[--interface ADDRESS] [--seconds N] [--books] [--quiet]\n", wrong);
    return 2;
}

static bool parse_number(const char *text, long most, long *found) {
    char *end;
    errno = 0;
    *found = strtol(text, &end, 10);
    return !errno && end != text && !*end && *found >= 0 && *found <= most;
}

int main(int argc, char **argv) {
    const char *group = FEEDER_GROUP, *interface = "127.0.0.1";
    long port = FEEDER_PORT, snapshot_port = FEEDER_SNAPSHOT_PORT, seconds = 0;
    bool with_books = false;
    for (int at = 1; at < argc; at++) {
        const char *name = argv[at], *value = at + 1 < argc ? argv[at + 1] : "";
        bool good = true;
        if (!strcmp(name, "--books") || !strcmp(name, "--quiet")) {
            *(name[2] == 'b' ? &with_books : &is_quiet) = true;
            continue;
        }
        if (!strcmp(name, "--group"))
            group = value;
        else if (!strcmp(name, "--interface"))
            interface = value;
        else if (!strcmp(name, "--port"))
            good = parse_number(value, 65535, &port) && port;
        else if (!strcmp(name, "--snapshot-port"))
            good = parse_number(value, 65535, &snapshot_port);
        else if (!strcmp(name, "--seconds"))
            good = parse_number(value, 1000000000, &seconds);
        else
            return usage(name);
        if (!good)
            return usage(name);
        at++;
    }
    has_loop = snapshot_port;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    /* The loop's socket first: it may be looked at first as well, and what it tells about the future waits. */
    struct pollfd sockets[2] = {{.fd = -1, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    sockets[1].fd = open_socket(group, (int)port, interface);
    if (sockets[1].fd < 0 || (has_loop && (sockets[0].fd = open_socket(group, (int)snapshot_port, interface)) < 0))
        return 2;
    printf("listening %s %ld %ld\n", group, port, snapshot_port);
    int64_t end_ns = seconds ? steady_ns() + seconds * SECOND : INT64_MAX, next_ns = 0;
    while (!is_interrupted && steady_ns() < end_ns) {
        poll(sockets, 2, 200);
        for (size_t at = 0; at < 2; at++)
            if (sockets[at].fd >= 0)
                read_some(sockets[at].fd);
        now_ns = steady_ns();
        if (now_ns >= next_ns) {
            tell_silence();
            next_ns = now_ns + SECOND / 5;
        }
    }
    end_ns = steady_ns() + SECOND;
    for (bool more = true; more && steady_ns() < end_ns;) {      /* what had arrived by then counts, too */
        more = sockets[0].fd >= 0 && read_some(sockets[0].fd);
        more |= read_some(sockets[1].fd);
    }
    now_ns = steady_ns();
    summary(with_books);
    for (size_t number = 0; number < 65536; number++) {
        if (channels[number]) {
            clear_channel(channels[number]);
            release(channels[number], sizeof(Channel));
        }
    }
    if (fflush(stdout))
        return 2;
    return counts.gaps ? 3 : counts.packets ? 0 : 1;
}
