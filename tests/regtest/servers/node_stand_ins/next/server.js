// What next-l402 takes from Next.js: a web Response under another name. Next.js itself isn't needed to make and check tokens.
'use strict';

exports.NextResponse = class NextResponse extends Response {
  static next() {
    return new NextResponse(null, { headers: { 'x-middleware-next': '1' } });
  }
};
