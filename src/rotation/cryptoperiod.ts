// How long a data key may be the active one. The default is that of NIST SP 800-57 for keys that encrypt data at rest.

export const cryptoperiodDays = 90;
