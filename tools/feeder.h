/* Packets of `feeder`, version 1, as structures. What each field means is in docs/protocol.md; this file only says
 * where it lies, and has the compiler prove it. C11, or C++11 and later.
 *
 * The wire is little-endian and every field lies at a multiple of its size. On a little-endian machine the bytes are
 * the structures: memcpy() them (compilers make it nothing), or cast where the buffer is aligned to 8.
 */
#ifndef FEEDER_H
#define FEEDER_H

#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "feeder.h is for little-endian machines: elsewhere each field is to be turned round"
#endif

#define FEEDER_MAGIC 0x31524446u         /* "FDR1" on the wire */
#define FEEDER_CONTROL_MAGIC 0x51524446u /* "FDRQ" */
#define FEEDER_VERSION 1
#define FEEDER_GROUP "239.192.0.1"
#define FEEDER_PORT 30001
#define FEEDER_SNAPSHOT_PORT 30002
#define FEEDER_NO_INSTRUMENT 0xFFFFFFFFu /* a whole venue (STATUS), or none (PADDING, ROUND) */
#define FEEDER_INSTRUMENTS 65536         /* an instrument_id is below */
#define FEEDER_MAX_DATAGRAM_BYTES 65507
#define FEEDER_TRAILER_BYTES 16          /* behind the last message where FEEDER_SIGNED is set */
#define FEEDER_SILENCE_S 3

enum feeder_packet_flag {
    FEEDER_HEARTBEAT = 1, FEEDER_END = 2, FEEDER_SNAPSHOTS = 4, FEEDER_RETRANSMITTED = 8, FEEDER_SIGNED = 16
};
enum feeder_type {
    FEEDER_DEFINITION = 1, FEEDER_SNAPSHOT = 2, FEEDER_INCREMENT = 3, FEEDER_TRADE = 4, FEEDER_BBO = 5,
    FEEDER_STATUS = 6, FEEDER_PADDING = 7, FEEDER_ROUND = 8
};
enum feeder_message_flag { FEEDER_LAST = 1, FEEDER_FIRST = 2, FEEDER_REFRESH = 4 };
enum { FEEDER_EDITION_SHIFT = 5 };       /* message flags above: the edition */
enum feeder_state { FEEDER_SYNCING = 1, FEEDER_LIVE = 2, FEEDER_STALE = 3 };
enum feeder_side { FEEDER_BUY = 1, FEEDER_SELL = 2 };
enum feeder_shared { FEEDER_SHARED_BOOK = 1, FEEDER_SHARED_TRADE = 2, FEEDER_SHARED_BBO = 4 };
enum feeder_reason {
    FEEDER_REASON_NONE, FEEDER_REASON_START, FEEDER_REASON_GAP, FEEDER_REASON_DISCONNECT, FEEDER_REASON_CROSSED,
    FEEDER_REASON_SNAPSHOT_STALE, FEEDER_REASON_BUFFER_OVERFLOW, FEEDER_REASON_PRECISION, FEEDER_REASON_RANGE,
    FEEDER_REASON_BAD_MESSAGE, FEEDER_REASON_VENUE, FEEDER_REASON_SHUTDOWN, FEEDER_REASON_RING_FULL,
    FEEDER_REASON_TOO_MANY_LEVELS, FEEDER_REASON_CHECKSUM, FEEDER_REASON_SILENT
};
enum feeder_control_kind { FEEDER_REQUEST = 1, FEEDER_CHALLENGE = 2, FEEDER_UNAVAILABLE = 3, FEEDER_BUSY = 4 };

struct feeder_packet_header {
    uint32_t magic;
    uint8_t version, flags;
    uint16_t channel;
    uint64_t session, sequence;
    int64_t send_ns;
    uint16_t message_count, packet_bytes;
    uint32_t loop;
};

struct feeder_message_header {
    uint16_t type, message_bytes;
    uint32_t instrument_id;
    uint64_t venue_sequence;
    int64_t event_ns, recv_ns;
    uint8_t flags, state;
    uint16_t bid_count;
    uint32_t epoch;
};

struct feeder_order_book_item {
    int64_t price, quantity;
};

struct feeder_trade_item {
    uint64_t trade_id;
    int64_t price, quantity;
    uint8_t side, padding[7];
};

struct feeder_bbo {
    int64_t bid_price, bid_quantity, ask_price, ask_quantity;
};

struct feeder_definition {
    int8_t price_exponent, quantity_exponent;
    uint16_t depth;
    uint8_t shared, reserved[3];
    int64_t tick, lot;
    char venue[24], symbol[32], name[32];
};

struct feeder_status {
    uint16_t reason;
    uint8_t connected, reserved[5];
    char venue[24], text[32];
};

struct feeder_round {
    uint32_t number, instrument_count;
    uint64_t reserved;
};

struct feeder_control {
    uint32_t magic;
    uint8_t version, kind;
    uint16_t channel;
    uint64_t session, first;
    uint32_t count, wait_us;
    uint8_t token[16];
};

#ifdef __cplusplus
#define FEEDER_ASSERT static_assert
#else
#define FEEDER_ASSERT _Static_assert
#endif
#define FEEDER_SIZE(type, bytes) FEEDER_ASSERT(sizeof(struct type) == (bytes), "size of " #type)
#define FEEDER_AT(type, field, offset) FEEDER_ASSERT(offsetof(struct type, field) == (offset), #type "." #field)

FEEDER_SIZE(feeder_packet_header, 40);
FEEDER_AT(feeder_packet_header, magic, 0);
FEEDER_AT(feeder_packet_header, version, 4);
FEEDER_AT(feeder_packet_header, flags, 5);
FEEDER_AT(feeder_packet_header, channel, 6);
FEEDER_AT(feeder_packet_header, session, 8);
FEEDER_AT(feeder_packet_header, sequence, 16);
FEEDER_AT(feeder_packet_header, send_ns, 24);
FEEDER_AT(feeder_packet_header, message_count, 32);
FEEDER_AT(feeder_packet_header, packet_bytes, 34);
FEEDER_AT(feeder_packet_header, loop, 36);

FEEDER_SIZE(feeder_message_header, 40);
FEEDER_AT(feeder_message_header, type, 0);
FEEDER_AT(feeder_message_header, message_bytes, 2);
FEEDER_AT(feeder_message_header, instrument_id, 4);
FEEDER_AT(feeder_message_header, venue_sequence, 8);
FEEDER_AT(feeder_message_header, event_ns, 16);
FEEDER_AT(feeder_message_header, recv_ns, 24);
FEEDER_AT(feeder_message_header, flags, 32);
FEEDER_AT(feeder_message_header, state, 33);
FEEDER_AT(feeder_message_header, bid_count, 34);
FEEDER_AT(feeder_message_header, epoch, 36);

FEEDER_SIZE(feeder_order_book_item, 16);
FEEDER_AT(feeder_order_book_item, price, 0);
FEEDER_AT(feeder_order_book_item, quantity, 8);

FEEDER_SIZE(feeder_trade_item, 32);
FEEDER_AT(feeder_trade_item, trade_id, 0);
FEEDER_AT(feeder_trade_item, price, 8);
FEEDER_AT(feeder_trade_item, quantity, 16);
FEEDER_AT(feeder_trade_item, side, 24);

FEEDER_SIZE(feeder_bbo, 32);
FEEDER_AT(feeder_bbo, bid_price, 0);
FEEDER_AT(feeder_bbo, bid_quantity, 8);
FEEDER_AT(feeder_bbo, ask_price, 16);
FEEDER_AT(feeder_bbo, ask_quantity, 24);

FEEDER_SIZE(feeder_definition, 112);
FEEDER_AT(feeder_definition, price_exponent, 0);
FEEDER_AT(feeder_definition, quantity_exponent, 1);
FEEDER_AT(feeder_definition, depth, 2);
FEEDER_AT(feeder_definition, shared, 4);
FEEDER_AT(feeder_definition, tick, 8);
FEEDER_AT(feeder_definition, lot, 16);
FEEDER_AT(feeder_definition, venue, 24);
FEEDER_AT(feeder_definition, symbol, 48);
FEEDER_AT(feeder_definition, name, 80);

FEEDER_SIZE(feeder_status, 64);
FEEDER_AT(feeder_status, reason, 0);
FEEDER_AT(feeder_status, connected, 2);
FEEDER_AT(feeder_status, venue, 8);
FEEDER_AT(feeder_status, text, 32);

FEEDER_SIZE(feeder_round, 16);
FEEDER_AT(feeder_round, number, 0);
FEEDER_AT(feeder_round, instrument_count, 4);

FEEDER_SIZE(feeder_control, 48);
FEEDER_AT(feeder_control, magic, 0);
FEEDER_AT(feeder_control, version, 4);
FEEDER_AT(feeder_control, kind, 5);
FEEDER_AT(feeder_control, channel, 6);
FEEDER_AT(feeder_control, session, 8);
FEEDER_AT(feeder_control, first, 16);
FEEDER_AT(feeder_control, count, 24);
FEEDER_AT(feeder_control, wait_us, 28);
FEEDER_AT(feeder_control, token, 32);

#endif
