//! The kernel's numbers, by the names that its headers give them.

// linux/netlink.h
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLM_F_REQUEST: u16 = 0x1;
pub(super) const NLM_F_ACK: u16 = 0x4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
/// In an answer: the table changed while it was listed.
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
/// In an error: the request is not repeated beyond its header.
pub(super) const NLM_F_CAPPED: u16 = 0x100;
/// In an error: attributes follow.
pub(super) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(super) const NLMSGERR_ATTR_MSG: u16 = 1;
pub(super) const NLMSGERR_ATTR_OFFS: u16 = 2;
pub(super) const NLA_F_NESTED: u16 = 0x8000;
pub(super) const NLA_TYPE_MASK: u16 = 0x3fff;

// linux/netfilter/nfnetlink.h
pub(super) const NFNL_SUBSYS_NFTABLES: u8 = 10;
pub(super) const NFNL_SUBSYS_NFT_COMPAT: u8 = 11;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFNL_BATCH_GENID: u16 = 1;

// linux/netfilter.h
pub(super) const NFPROTO_UNSPEC: u8 = 0;
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
pub(super) const NF_INET_PRE_ROUTING: u32 = 0;
pub(super) const NF_INET_LOCAL_OUT: u32 = 3;
pub(super) const NF_DROP: i32 = 0;
pub(super) const NF_ACCEPT: i32 = 1;

/// The priority of destination NAT (`NF_IP_PRI_NAT_DST`, linux/netfilter_ipv4.h): both hooks have
/// it, in nf_tables as in `ip_tables`.
pub(super) const NF_IP_PRI_NAT_DST: i32 = -100;
/// The priority of filters, the same in both families.
pub(super) const NF_IP_PRI_FILTER: i32 = 0;

// linux/netfilter/nf_tables.h
pub(super) const NFT_MSG_NEWTABLE: u8 = 0;
pub(super) const NFT_MSG_NEWCHAIN: u8 = 3;
pub(super) const NFT_MSG_GETCHAIN: u8 = 4;
pub(super) const NFT_MSG_DELCHAIN: u8 = 5;
pub(super) const NFT_MSG_NEWRULE: u8 = 6;
pub(super) const NFT_MSG_GETRULE: u8 = 7;
pub(super) const NFT_MSG_DELRULE: u8 = 8;
pub(super) const NFT_MSG_NEWGEN: u8 = 15;
pub(super) const NFT_MSG_GETGEN: u8 = 16;

pub(super) const NFTA_GEN_ID: u16 = 1;
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_COMPAT: u16 = 5;
pub(super) const NFTA_RULE_POSITION: u16 = 6;
pub(super) const NFTA_RULE_COMPAT_PROTO: u16 = 1;
pub(super) const NFTA_RULE_COMPAT_FLAGS: u16 = 2;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;
pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;
pub(super) const NFTA_BITWISE_OP: u16 = 6;
pub(super) const NFTA_LOOKUP_DREG: u16 = 3;
pub(super) const NFTA_COUNTER_BYTES: u16 = 1;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;

pub(super) const NFT_REG_VERDICT: u32 = 0;
pub(super) const NFT_REG_1: u32 = 1;
pub(super) const NFT_CMP_EQ: u32 = 0;
pub(super) const NFT_CMP_NEQ: u32 = 1;
pub(super) const NFT_BITWISE_MASK_XOR: u32 = 0;
pub(super) const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(super) const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
pub(super) const NFT_META_IIFNAME: u32 = 6;
pub(super) const NFT_META_OIFNAME: u32 = 7;
pub(super) const NFT_META_L4PROTO: u32 = 16;
pub(super) const NFT_CONTINUE: i32 = -1;
pub(super) const NFT_JUMP: i32 = -3;
pub(super) const NFT_GOTO: i32 = -4;
pub(super) const NFT_RETURN: i32 = -5;

// linux/netfilter/nf_tables_compat.h; a match and a target have the same three.
pub(super) const NFNL_MSG_COMPAT_GET: u8 = 0;
pub(super) const NFTA_COMPAT_NAME: u16 = 1;
pub(super) const NFTA_COMPAT_REV: u16 = 2;
pub(super) const NFTA_COMPAT_TYPE: u16 = 3;
pub(super) const NFTA_XT_NAME: u16 = 1;
pub(super) const NFTA_XT_REV: u16 = 2;
pub(super) const NFTA_XT_INFO: u16 = 3;

// linux/netfilter/xt_owner.h, xt_multiport.h, nf_nat.h
pub(super) const XT_OWNER_UID: u8 = 1;
pub(super) const XT_OWNER_GID: u8 = 2;
pub(super) const XT_MULTIPORT_DESTINATION: u8 = 1;
pub(super) const XT_MULTI_PORTS: usize = 15;
pub(super) const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;

// linux/netfilter/xt_tcpudp.h: ports from and to, where a match takes none; the flags of a segment.
pub(super) const ANY_PORT: [u16; 4] = [0, u16::MAX, 0, u16::MAX];
pub(super) const TCP_FIN: u8 = 1;
pub(super) const TCP_SYN: u8 = 2;
pub(super) const TCP_RST: u8 = 4;
pub(super) const TCP_ACK: u8 = 16;

// linux/netfilter_ipv4/ipt_REJECT.h, linux/netfilter_ipv6/ip6t_REJECT.h
pub(super) const IPT_TCP_RESET: u32 = 7;
pub(super) const IP6T_TCP_RESET: u32 = 6;

// linux/in.h
pub(super) const IPPROTO_TCP: u8 = 6;
