// Tests of the protocol.
