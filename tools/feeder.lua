-- Wireshark dissector of `feeder`'s datagrams, docs/protocol.md: in sequence, snapshot loop, retransmission, signed.
--
--     wireshark -X lua_script:tools/feeder.lua       tshark -X lua_script:tools/feeder.lua -r FILE.pcap -V
--     or copy it to the folder that Help > About > Folders calls "Personal Lua Plugins"
--
-- Finds them by their first bytes on any UDP port. A gap in a channel is an expert info of the packet behind it, and
-- the fields feeder.gap.first and feeder.gap.last; each destination is judged by itself, so that two lines are not
-- mixed. Numbers are shown at the exponents of the instrument's definition where the capture has it; the fields are
-- integers. Filters: feeder.gap.first, feeder.type == 4, feeder.trade.side == 2, feeder.flags.loop ...

local MAGIC, CONTROL_MAGIC = 0x31524446, 0x51524446
local HEADER, MESSAGE, TRAILER, CONTROL = 40, 40, 16, 48
local NOBODY = 4294967295
local MAX_KNOWN = 65536           -- definitions and channels that are remembered
local HEARTBEAT, END, LOOP, AGAIN, SIGNED = 1, 2, 4, 8, 16

local TYPES = { [1] = "DEFINITION", [2] = "SNAPSHOT", [3] = "INCREMENT", [4] = "TRADE", [5] = "BBO", [6] = "STATUS",
                [7] = "PADDING", [8] = "ROUND" }
local BODIES = { [1] = 112, [4] = 32, [5] = 32, [6] = 64, [8] = 16 }
local STATES = { [0] = "-", [1] = "syncing", [2] = "live", [3] = "stale" }
local SIDES = { [1] = "buy", [2] = "sell" }
local REASONS = { [0] = "none", "start", "gap", "disconnect", "crossed", "snapshot_stale", "buffer_overflow",
                  "precision", "range", "bad_message", "venue", "shutdown", "ring_full", "too_many_levels", "checksum",
                  "silent" }
local KINDS = { [1] = "REQUEST", [2] = "CHALLENGE", [3] = "UNAVAILABLE", [4] = "BUSY" }

local feeder = Proto("feeder", "feeder market data")
local control = Proto("feeder_control", "feeder retransmission")

local f, experts = {}, {}
local function field(name, make, label, ...)
    f[name] = ProtoField[make]("feeder." .. name, label, ...)
end

field("magic", "uint32", "Magic", base.HEX)
field("version", "uint8", "Version")
field("flags", "uint8", "Flags", base.HEX)
field("flags.heartbeat", "bool", "Heartbeat", 8, nil, 1)
field("flags.end", "bool", "End of session", 8, nil, 2)
field("flags.loop", "bool", "Snapshot loop", 8, nil, 4)
field("flags.retransmitted", "bool", "Retransmitted", 8, nil, 8)
field("flags.signed", "bool", "Signed", 8, nil, 16)
field("channel", "uint16", "Channel")
field("session", "uint64", "Session")
field("sequence", "uint64", "Sequence")
field("send_ns", "int64", "Sent, ns")
field("message_count", "uint16", "Messages")
field("packet_bytes", "uint16", "Bytes")
field("loop", "uint32", "Number in the loop")
field("trailer", "bytes", "Trailer (HMAC-SHA-256, not verified here)")
field("gap.first", "uint64", "First missing")
field("gap.last", "uint64", "Last missing")
field("message", "bytes", "Message")
field("number", "uint64", "Number of the message")
field("type", "uint16", "Type", base.DEC, TYPES)
field("message_bytes", "uint16", "Bytes")
field("instrument_id", "uint32", "Instrument")
field("venue_sequence", "uint64", "Venue's sequence")
field("event_ns", "int64", "Venue's time, ns")
field("recv_ns", "int64", "Received, ns")
field("message_flags", "uint8", "Flags", base.HEX)
field("message_flags.last", "bool", "Last of the event", 8, nil, 1)
field("message_flags.first", "bool", "First of a snapshot", 8, nil, 2)
field("message_flags.refresh", "bool", "Refresh", 8, nil, 4)
field("message_flags.edition", "uint8", "Edition of the definition", base.DEC, nil, 0xE0)
field("state", "uint8", "Book's state", base.DEC, STATES)
field("bid_count", "uint16", "Bids")
field("epoch", "uint32", "Epoch")
field("price", "int64", "Price")
field("quantity", "int64", "Quantity")
field("trade.id", "uint64", "Trade")
field("trade.side", "uint8", "Aggressor", base.DEC, SIDES)
field("bbo.bid_price", "int64", "Bid")
field("bbo.bid_quantity", "int64", "Bid's quantity")
field("bbo.ask_price", "int64", "Ask")
field("bbo.ask_quantity", "int64", "Ask's quantity")
field("definition.price_exponent", "int8", "Price exponent")
field("definition.quantity_exponent", "int8", "Quantity exponent")
field("definition.depth", "uint16", "Depth")
field("definition.shared", "uint8", "Shared between lines", base.HEX)
field("definition.tick", "int64", "Tick")
field("definition.lot", "int64", "Lot")
field("definition.venue", "string", "Venue")
field("definition.symbol", "string", "Symbol")
field("definition.name", "string", "Name")
field("status.reason", "uint16", "Reason", base.DEC, REASONS)
field("status.connected", "uint8", "Connected")
field("status.venue", "string", "Venue")
field("status.text", "string", "Text")
field("round.number", "uint32", "Round")
field("round.instrument_count", "uint32", "Instruments")
field("control.magic", "uint32", "Magic", base.HEX)
field("control.version", "uint8", "Version")
field("control.kind", "uint8", "Kind", base.DEC, KINDS)
field("control.channel", "uint16", "Channel")
field("control.session", "uint64", "Session")
field("control.first", "uint64", "First message")
field("control.count", "uint32", "Messages")
field("control.wait_us", "uint32", "Ask again after, us")
field("control.token", "bytes", "Token")
field("control.trailer", "bytes", "Trailer (HMAC-SHA-256, not verified here)")

local packet_fields, control_fields = {}, {}
for name, each in pairs(f) do
    table.insert(name:sub(1, 8) == "control." and control_fields or packet_fields, each)
end
feeder.fields, control.fields = packet_fields, control_fields

experts.gap = ProtoExpert.new("feeder.expert.gap", "Messages are missing", expert.group.SEQUENCE,
                              expert.severity.WARN)
experts.late = ProtoExpert.new("feeder.expert.late", "Late, or sent twice", expert.group.SEQUENCE, expert.severity.NOTE)
experts.malformed = ProtoExpert.new("feeder.expert.malformed", "Malformed", expert.group.MALFORMED,
                                    expert.severity.ERROR)
feeder.experts = { experts.gap, experts.late, experts.malformed }

local function has(flags, bit)     -- the library of bits has another name in each version of Lua
    return math.floor(flags / bit) % 2 == 1
end

-- What is known from packet to packet. Wireshark dissects a packet whenever it is looked at: order is judged in the
-- first pass only, and remembered by frame and place in it.
local definitions, expected, judged, known = {}, {}, {}, 0

function feeder.init()
    definitions, expected, judged, known = {}, {}, {}, 0
end

local function remember(where, key, value)
    if where[key] == nil then
        known = known + 1
    end
    if where[key] ~= nil or known <= MAX_KNOWN then
        where[key] = value
    end
end

-- An integer (Int64) x 10^exponent as text, exact, without zeros at the end.
local function scaled(value, exponent)
    local digits = tostring(value)
    if not exponent or exponent >= 0 then
        return digits
    end
    local sign = ""
    if digits:sub(1, 1) == "-" then
        sign, digits = "-", digits:sub(2)
    end
    digits = string.rep("0", 1 - exponent - #digits) .. digits
    local whole, fraction = digits:sub(1, exponent - 1), digits:sub(exponent):gsub("0+$", "")
    return sign .. whole .. (fraction ~= "" and "." .. fraction or "")
end

local function add(tree, name, range, ...)
    return tree:add_le(f[name], range, ...)
end

local function add_scaled(tree, name, range, exponent)
    local text = scaled(range:le_int64(), exponent)
    add(tree, name, range):append_text(" (" .. text .. ")")
    return text
end

local function add_text(tree, name, range)
    local text = range:raw()
    text = text:sub(1, (text:find("\0", 1, true) or #text + 1) - 1)
    tree:add(f[name], range, text)
    return text
end

local function add_time(tree, name, range)
    local item, ns = add(tree, name, range), range:le_int64()
    if ns > Int64(0) then
        item:append_text(" (" .. format_date((ns / Int64(1000000000)):tonumber()) .. ")")
    end
end

local function levels(tree, body, bid_count, exponents)
    for at = 0, body:len() - 16, 16 do
        local price, quantity = body(at, 8):le_int64(), body(at + 8, 8):le_int64()
        local name = at < 16 * bid_count and "bid" or "ask"
        local item = tree:add(feeder, body(at, 16), string.format(
            "%s %s x %s", name, scaled(price, exponents.price), scaled(quantity, exponents.quantity)))
        add(item, "price", body(at, 8))
        add(item, "quantity", body(at + 8, 8))
    end
end

-- Each returns what the line of the message says besides its type.
local readers = {
    [1] = function(tree, body, head)
        add(tree, "definition.price_exponent", body(0, 1))
        add(tree, "definition.quantity_exponent", body(1, 1))
        add(tree, "definition.depth", body(2, 2))
        add(tree, "definition.shared", body(4, 1))
        local exponents = { price = body(0, 1):le_int(), quantity = body(1, 1):le_int() }
        add_scaled(tree, "definition.tick", body(8, 8), exponents.price)
        add_scaled(tree, "definition.lot", body(16, 8), exponents.quantity)
        exponents.symbol = add_text(tree, "definition.venue", body(24, 24)) .. ":"
            .. add_text(tree, "definition.symbol", body(48, 32))
        add_text(tree, "definition.name", body(80, 32))
        remember(definitions, head.key, exponents)
        return exponents.symbol
    end,
    [2] = function(tree, body, head)
        levels(tree, body, head.bid_count, head.exponents)
        return string.format("%d bids, %d asks", head.bid_count, body:len() / 16 - head.bid_count)
    end,
    [4] = function(tree, body, head)
        add(tree, "trade.id", body(0, 8))
        local price = add_scaled(tree, "price", body(8, 8), head.exponents.price)
        local quantity = add_scaled(tree, "quantity", body(16, 8), head.exponents.quantity)
        add(tree, "trade.side", body(24, 1))
        return string.format("%s %s x %s", SIDES[body(24, 1):uint()] or "?", price, quantity)
    end,
    [5] = function(tree, body, head)
        local texts = {}
        for at, name in ipairs({ "bid_price", "bid_quantity", "ask_price", "ask_quantity" }) do
            texts[at] = add_scaled(tree, "bbo." .. name, body(8 * at - 8, 8),
                                   at % 2 == 1 and head.exponents.price or head.exponents.quantity)
        end
        return string.format("bid %s x %s, ask %s x %s", texts[1], texts[2], texts[3], texts[4])
    end,
    [6] = function(tree, body, head)
        local reason = body(0, 2):le_uint()
        add(tree, "status.reason", body(0, 2))
        add(tree, "status.connected", body(2, 1))
        local venue = add_text(tree, "status.venue", body(8, 24))
        add_text(tree, "status.text", body(32, 32))
        if head.instrument == NOBODY then
            return venue .. (body(2, 1):uint() == 1 and " connected" or " disconnected")
        end
        return (STATES[head.state] or "?") .. ", " .. (REASONS[reason] or tostring(reason))
    end,
    [8] = function(tree, body)
        add(tree, "round.number", body(0, 4))
        add(tree, "round.instrument_count", body(4, 4))
        return string.format("%d over %d instruments", body(0, 4):le_uint(), body(4, 4):le_uint())
    end,
}
readers[3] = readers[2]

-- Dissect one message; returns its size, or nil where it is malformed.
local function message(range, tree, packet, number)
    if range:len() < MESSAGE then
        return nil
    end
    local kind, size = range(0, 2):le_uint(), range(2, 2):le_uint()
    local body_bytes = size - MESSAGE
    if size < MESSAGE or size % 8 ~= 0 or size > range:len() or (BODIES[kind] and BODIES[kind] ~= body_bytes)
            or ((kind == 2 or kind == 3) and (body_bytes % 16 ~= 0 or range(34, 2):le_uint() > body_bytes / 16)) then
        return nil
    end
    range = range(0, size)
    local item = tree:add(f["message"], range)
    local head = { instrument = range(4, 4):le_uint(), state = range(33, 1):uint(), bid_count = range(34, 2):le_uint() }
    head.key = string.format("%s %d %d", packet.key, head.instrument, math.floor(range(32, 1):uint() / 32))
    add(item, "type", range(0, 2))
    add(item, "message_bytes", range(2, 2))
    if number then
        item:add(f["number"], number):set_generated()
    end
    add(item, "instrument_id", range(4, 4))
    add(item, "venue_sequence", range(8, 8))
    add_time(item, "event_ns", range(16, 8))
    add_time(item, "recv_ns", range(24, 8))
    local flags = add(item, "message_flags", range(32, 1))
    for _, name in ipairs({ "last", "first", "refresh", "edition" }) do
        add(flags, "message_flags." .. name, range(32, 1))
    end
    add(item, "state", range(33, 1))
    add(item, "bid_count", range(34, 2))
    add(item, "epoch", range(36, 4))
    head.exponents = definitions[head.key] or {}
    local text = ""
    if readers[kind] and body_bytes > 0 then
        text = readers[kind](item, range(MESSAGE, body_bytes), head)
    end
    local name = TYPES[kind] or ("type " .. kind)
    local whose = head.instrument == NOBODY and ""
        or " of " .. (head.exponents.symbol or ("instrument " .. head.instrument))
    if kind == 1 then
        whose = " of instrument " .. head.instrument
    end
    item:set_text(name .. whose .. (text ~= "" and ": " .. text or ""))
    return size, name
end

-- What the order of packets says about this one: {"gap", first, last}, {"late"} or nil.
local function judge(packet, pinfo)
    local key = tostring(pinfo.dst) .. " " .. pinfo.dst_port .. " " .. packet.key
    local next_one, stop = expected[key], packet.sequence + UInt64(packet.count)
    if next_one and packet.sequence < next_one then
        return packet.count > 0 and { "late" } or nil
    end
    remember(expected, key, stop)
    return next_one and packet.sequence > next_one and { "gap", next_one, packet.sequence - UInt64(1) } or nil
end

-- Dissect the packet at the beginning of a range; returns its size.
local function dissect_packet(range, pinfo, root, place)
    local size, flags = range(34, 2):le_uint(), range(5, 1):uint()
    local is_cut = size > range:len()
    size = math.max(HEADER, math.min(size, range:len()))
    range = range(0, size)
    local packet = { sequence = range(16, 8):le_uint64(), count = range(32, 2):le_uint(),
                     key = range(6, 2):le_uint() .. " " .. tostring(range(8, 8):le_uint64()) }
    local is_loop, is_signed = has(flags, LOOP), has(flags, SIGNED)
    local tree = root:add(feeder, range)
    add(tree, "magic", range(0, 4))
    add(tree, "version", range(4, 1))
    local item = add(tree, "flags", range(5, 1))
    for _, name in ipairs({ "heartbeat", "end", "loop", "retransmitted", "signed" }) do
        add(item, "flags." .. name, range(5, 1))
    end
    add(tree, "channel", range(6, 2))
    add(tree, "session", range(8, 8))
    add(tree, "sequence", range(16, 8))
    add_time(tree, "send_ns", range(24, 8))
    add(tree, "message_count", range(32, 2))
    add(tree, "packet_bytes", range(34, 2))
    add(tree, "loop", range(36, 4))

    local here = pinfo.number .. " " .. place
    if not is_loop and not pinfo.visited then
        judged[here] = judge(packet, pinfo)
    end
    local verdict = judged[here] or {}
    if verdict[1] == "gap" then
        tree:add(f["gap.first"], verdict[2]):set_generated()
        tree:add(f["gap.last"], verdict[3]):set_generated()
        tree:add_proto_expert_info(experts.gap, string.format(
            "Messages %s to %s are missing", tostring(verdict[2]), tostring(verdict[3])))
    elseif verdict[1] == "late" then
        tree:add_proto_expert_info(experts.late)
    end

    local stop, at, names = size - (is_signed and TRAILER or 0), HEADER, {}
    local is_bad = is_cut or stop < HEADER
    for count = 1, packet.count do
        if is_bad or at >= stop then
            is_bad = true
            break
        end
        local number = not is_loop and packet.sequence + UInt64(count - 1) or nil
        local bytes, name = message(range(at, stop - at), tree, packet, number)
        if not bytes then
            is_bad = true
            break
        end
        at = at + bytes
        names[name] = (names[name] or 0) + 1
    end
    if is_bad or at ~= stop then
        tree:add_proto_expert_info(experts.malformed,
                                   is_cut and "Shorter than it says" or "Messages do not fill the packet")
    elseif is_signed then
        tree:add(f["trailer"], range(stop, TRAILER))
    end

    local info = { "channel " .. range(6, 2):le_uint() }
    if is_loop then
        table.insert(info, "loop " .. range(36, 4):le_uint() .. ", before " .. tostring(packet.sequence))
    else
        table.insert(info, "#" .. tostring(packet.sequence))
    end
    if has(flags, END) then
        table.insert(info, "END")
    elseif packet.count == 0 or has(flags, HEARTBEAT) then
        table.insert(info, "HEARTBEAT")
    end
    for kind = 1, 8 do
        if names[TYPES[kind]] then
            table.insert(info, names[TYPES[kind]] .. " " .. TYPES[kind])
        end
    end
    if has(flags, AGAIN) then
        table.insert(info, "(again)")
    end
    if verdict[1] then
        table.insert(info, verdict[1] == "gap" and "GAP before" or "late")
    end
    local text = table.concat(info, " ")
    tree:set_text("feeder, " .. text)
    return size, text
end

function feeder.dissector(tvb, pinfo, root)
    pinfo.cols.protocol = "FEEDER"
    local place, texts = 0, {}
    -- A capture at the sender may show several datagrams, sent by one call, as one.
    while tvb:len() - place >= HEADER and tvb(place, 4):le_uint() == MAGIC do
        local size, text = dissect_packet(tvb(place, tvb:len() - place), pinfo, root, place)
        place = place + size
        table.insert(texts, text)
    end
    pinfo.cols.info = table.concat(texts, "; ", 1, math.min(#texts, 4)) .. (#texts > 4 and " ..." or "")
    return place
end

function control.dissector(tvb, pinfo, root)
    local kind = tvb(5, 1):uint()
    local tree = root:add(control, tvb())
    for _, each in ipairs({ { "magic", 0, 4 }, { "version", 4, 1 }, { "kind", 5, 1 }, { "channel", 6, 2 },
                            { "session", 8, 8 }, { "first", 16, 8 }, { "count", 24, 4 }, { "wait_us", 28, 4 } }) do
        add(tree, "control." .. each[1], tvb(each[2], each[3]))
    end
    tree:add(f["control.token"], tvb(32, 16))
    if tvb:len() == CONTROL + TRAILER then
        tree:add(f["control.trailer"], tvb(CONTROL, TRAILER))
    end
    local text = string.format("%s channel %d #%s, %d messages", KINDS[kind] or ("kind " .. kind), tvb(6, 2):le_uint(),
                               tostring(tvb(16, 8):le_uint64()), tvb(24, 4):le_uint())
    tree:set_text("feeder retransmission, " .. text)
    pinfo.cols.protocol = "FEEDER"
    pinfo.cols.info = text
    return tvb:len()
end

feeder:register_heuristic("udp", function(tvb, pinfo, root)
    if tvb:len() < HEADER or tvb(0, 4):le_uint() ~= MAGIC or tvb(4, 1):uint() ~= 1 then
        return false
    end
    feeder.dissector(tvb, pinfo, root)
    return true
end)

control:register_heuristic("udp", function(tvb, pinfo, root)
    if (tvb:len() ~= CONTROL and tvb:len() ~= CONTROL + TRAILER) or tvb(0, 4):le_uint() ~= CONTROL_MAGIC
            or tvb(4, 1):uint() ~= 1 then
        return false
    end
    control.dissector(tvb, pinfo, root)
    return true
end)
