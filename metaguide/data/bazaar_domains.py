"""The private words of each domain of the bazaar, one block each; `bazaar_words` reads them.

The first line is: name; noun; Chinese noun; materials; brands (two cheap, two expensive). The mark
at the start of each other line tells its kind:

    #  category; nouns; features; the same in Chinese
    +  praise
    -  blame
    ~  aspects
    *  taste words, in the order of `TASTES`
    ?  two attributes with values of one type, terms separated by a slash
    !  ways to ask for `{a}`

English comes before Chinese, separated by a semicolon. An indented line continues the one above.
No two domains share words of praise or blame, or Chinese characters in these.
"""

DOMAINS = """
clothing; garment; 服饰; cotton, wool, leather; Bassin, Tolmo, Verand, Odile
# shirt; blouse, tee; collar, cuff, buttons; 衬衫; 上衣; 领口, 袖扣
# jacket; coat, parka; hood, zip pockets, insulation; 夹克; 外套; 风帽, 夹层
# trousers; jeans, chinos; belt loops, pleats, back pockets; 长裤; 牛仔裤; 裤腰, 裤脚
# dress; gown, frock; hemline, straps, waist tie; 连衣裙; 长裙; 裙摆, 吊带
# socks; stockings, anklets; ribbed heel, toe seam, elastic top; 袜子; 短袜; 袜口, 袜跟
# hat; cap, beanie; brim, sweatband, visor; 帽子; 鸭舌帽; 帽檐, 帽围
# boots; shoes, sneakers; laces, insole, rubber sole; 靴子; 皮鞋; 鞋带, 鞋垫
# scarf; shawl, wrap; fringe, knitted edge, long drape; 围巾; 披肩; 流苏, 针织边
+ cosy, breathable, flattering, snug, silky, roomy, stretchy, airy;
  透气, 修身, 柔软, 显瘦, 保暖, 亲肤
- itchy, baggy, scratchy, faded, frayed, clingy, wrinkled, stiff;
  扎人, 起球, 褪色, 掉毛, 皱巴, 紧绷
~ fabric, stitching, fit, zipper; 面料, 走线, 版型, 拉链
* thrifty, couture, tailored, urban, boho, upcycled; 平价, 定制, 复古, 都市, 民族风, 再生
? waist/waistline; hip/seat; 70 cm, 80 cm, 90 cm; 腰围/腰身; 臀围/坐围; 70厘米, 80厘米, 90厘米
? lining/inside; shell/outside; fleece, mesh, denim; 内衬/里料; 面层/表料; 抓绒, 网布, 牛仔布
! How is the {a} cut? / Before I order, {a}?; 尺码页上{a}怎么写？ / 下单前想问{a}？

home_appliances; appliance; 家电; steel, plastic, glass; Kelvo, Ranik, Hausberg, Mirelle
# washing machine; laundry unit, washer; spin drum, soap drawer, door seal; 洗衣机; 滚筒机;
  脱水桶, 洗涤盒
# refrigerator; fridge, cooler; freezer drawer, egg rack, crisper; 冰箱; 冷柜; 冷冻室, 蛋架
# vacuum cleaner; hoover, sweeper; dust bag, hose, baseline brush; 吸尘器; 除尘机; 尘袋, 软管
# water heater; boiler, geyser; hot tank, relief valve, anode; 热水器; 电锅炉; 水箱, 泄压阀
# microwave oven; microwave, reheater; turntable, grill rack, defrost mode; 微波炉; 光波炉;
  转盘, 解冻档
# electric kettle; teakettle, jug; spout, limescale filter, auto shutoff; 电水壶; 烧水壶;
  壶嘴, 滤网
# air conditioner; chiller, climate unit; louvre, compressor, dehumidifier; 空调; 冷气机;
  压缩机, 导风板
# ceiling fan; ventilator, blower; blades, pull chain, canopy mount; 吊扇; 风扇; 扇叶, 拉绳
+ quiet, thorough, efficient, spotless, gentle, steady, effortless, powerful;
  静音, 省电, 强劲, 节能, 高效, 洁净
- noisy, leaky, rattling, rusty, smelly, clogged, scalding, wasteful;
  漏水, 吵闹, 生锈, 耗煤, 异味, 堵塞
~ motor, thermostat, timer, plug; 电机, 温控, 定时, 插头
* basic, deluxe, retro, smart, pastel, solar; 基础款, 尊享, 怀旧, 智控, 马卡龙, 太阳能
? rated power/wattage; standby draw/idle use; 5 watts, 500 watts, 900 watts; 额定功率/满载功耗;
  待机功率/空载功耗; 5瓦, 500瓦, 900瓦
? capacity/volume; reserve/spare tank; 2 litres, 4 litres, 8 litres; 容量/容积;
  备用量/副箱; 2升, 4升, 8升
! Our plumber asks for the {a}? / Which {a} does the plate state?;
  铭牌上{a}标多少？ / 安装师傅问{a}？

phones; gadget; 数码; plastic, glass, steel; Zunto, Pixar, Aurion, Celeste
# smartphone; handset, touchphone; fingerprint reader, dual sim, notch; 智能手机; 触屏机;
  指纹锁, 双卡槽
# flip phone; clamshell, folder; hinge, number pad, outer display; 翻盖手机; 折叠机;
  转轴, 数字键
# phone case; bumper, sleeve; raised lip, camera cutout, card slot; 手机壳; 保护套; 镜头孔, 卡袋
# charger; adapter, power brick; prongs, wall socket, quick mode; 充电器; 适配器; 插脚, 快充口
# power bank; battery pack, booster; charge lights, output port, cells; 充电宝; 移动电源;
  电芯, 指示灯
# earphones; headset, earbuds; ear tips, inline mic, charging box; 耳机; 耳塞; 耳套, 线控
# screen protector; tempered film, shield; adhesive rim, dust stickers, oil coating; 屏幕膜;
  钢化膜;
  贴边, 疏油层
# selfie stick; monopod, tripod pole; shutter remote, telescopic rod, clamp; 自拍杆; 三脚架;
  遥控器, 伸缩管
+ snappy, vivid, responsive, slim, bright, sleek, loud, sensitive;
  流畅, 清晰, 灵敏, 轻薄, 明亮, 护眼
- laggy, blurry, bulky, frozen, glitchy, dim, muffled, scratched;
  卡顿, 模糊, 发烫, 死机, 迟钝, 笨重
~ screen, battery, signal, speaker; 屏幕, 电池, 信号, 扬声
* entry, flagship, minimalist, futuristic, funky, refurbished;
  入门, 旗舰, 极简, 未来感, 萌趣, 翻新
? battery life/runtime; talk time/call time; 8 hours, 20 hours, 30 hours; 续航/待机;
  通话时长/通话;
  8小时, 20小时, 30小时
? front camera/selfie lens; rear camera/main lens; 12 megapixels, 32 megapixels, 48 megapixels;
  前摄/自拍镜头; 后摄/主镜头; 1200万像素, 3200万像素, 4800万像素
! Spec sheet check on the {a}? / Any numbers for the {a}?; 参数表里{a}多少？ / 实测{a}呢？

books; volume; 书籍; paper, leather, plastic; Quill, Foxley, Harrow, Lumière
# novel; thriller, story; plot twists, heroine, final chapter; 小说; 故事书; 情节, 女主角
# cookbook; recipe book, kitchen guide; recipes, meal plans, shopping lists; 食谱; 菜谱;
  菜式, 配料表
# textbook; course book, primer; exercises, worked answers, glossary; 教材; 课本; 习题, 答案
# comic; manga, graphic tale; speech bubbles, panels, superheroes; 漫画; 连环画; 分镜, 对白
# atlas; map book, gazetteer; maps, borders, contour lines; 地图册; 图志; 等高线, 国界
# dictionary; lexicon, wordbook; headwords, pronunciation, synonyms; 词典; 字典; 词条, 注音
# biography; memoir, life story; distribution photos, letters, timeline; 传记; 回忆录; 年表, 书信
# poetry; verse, sonnets; stanzas, rhymes, haiku; 诗集; 诗选; 韵脚, 绝句
+ gripping, witty, moving, insightful, lyrical, absorbing, clever, readable;
  精彩, 感动, 深刻, 风趣, 耐读, 细致
- boring, wordy, shallow, confusing, preachy, predictable, dated, rambling;
  枯燥, 啰嗦, 空洞, 晦涩, 俗套, 说教
~ writing, plot, index, print; 文笔, 章节, 索引, 印刷
* paperback, collector, vintage, contemporary, quirky, recycled;
  平装, 典藏, 古典, 当代, 幽默, 再生纸
? author/writer; translator/language expert; Lin, Moore, Okafor; 作者/著者; 译者/翻译;
  林敏, 莫尔, 奥卡
? first printing/debut year; latest edition/newest issue; 1998, 2005, 2012;
  首印年份/初版; 最新版年份/新版; 1998年, 2005年, 2012年
! Librarian here: {a}? / What does the title page say of the {a}?;
  版权页上{a}写的是？ / 馆员想问{a}？

groceries; foodstuff; 食品; glass, paper, plastic; Dorfo, Nibbi, Castella, Maréa
# coffee; espresso, arabica; dark roast, ground beans, crema; 咖啡; 浓缩豆; 深烘, 研磨粉
# tea; oolong, infusion; loose leaves, jasmine buds, teabags; 茶叶; 乌龙; 茉莉, 茶包
# honey; nectar, syrup; honeycomb, acacia blossom, beeswax; 蜂蜜; 蜜糖; 槐花, 蜂巢
# rice; basmati, grains; long kernels, paddy harvest, bran; 大米; 香粳; 米粒, 稻田
# olive oil; cooking oil, dressing; cold pressing, low acidity, grove; 橄榄油; 食用油;
  冷榨, 酸度
# chocolate; cocoa bar, truffle; cocoa butter, hazelnuts, nougat; 巧克力; 可可块; 榛子, 夹心
# cheese; cheddar, gouda; rind, milk cultures, cellar ageing; 奶酪; 芝士; 乳脂, 发酵
# noodles; pasta, ramen; wheat dough, egg strands, broth sachet; 面条; 拉面; 小麦, 汤料
+ crisp, fresh, fragrant, juicy, creamy, tasty, rich, tender; 新鲜, 香浓, 酥脆, 可口, 嫩滑, 甘甜
- stale, bitter, soggy, salty, mouldy, bland, sour, greasy; 变质, 齁咸, 油腻, 霉臭, 干硬, 寡淡
~ flavour, aroma, texture, freshness; 味道, 香气, 口感, 鲜度
* everyday, gourmet, traditional, fusion, festive, wild; 家常, 珍馐, 传统, 混搭, 节庆, 野生
? sugar/sweetener; salt/sodium; 2 grams, 6 grams, 9 grams; 含糖量/糖分; 含盐量/钠; 2克, 6克, 9克
? harvest month/picking; best before/expiry; April, June, October; 采收月份/采摘;
  到期月份/保质期;
  四月, 六月, 十月
! On the label, {a}? / My diet plan needs the {a}?; 配料表上{a}呢？ / 控制饮食想知道{a}？

furniture; piece; 家具; wood, leather, steel; Lagom, Brikko, Ashford, Villanova
# sofa; couch, settee; armrests, seat cushions, chaise; 沙发; 长榻; 扶手, 坐垫
# desk; bureau, workstation; cable tray, pen drawer, writing top; 书桌; 办公台; 走线孔, 键盘托
# bookshelf; bookcase, rack; tall shelves, book ends, wall anchor; 书架; 层架; 隔板, 挂墙件
# bed; bunk, divan; headboard, slats, mattress base; 床铺; 卧榻; 床头, 排骨架
# wardrobe; closet, armoire; clothes rail, mirror door, shoe drawer; 衣柜; 壁橱; 挂衣杆, 镜门
# dining table; dinner table, trestle; extension leaf, six places, tabletop; 餐桌; 饭台;
  转台, 桌面
# office chair; swivel chair, recliner; castors, lumbar pad, gas lift; 办公椅; 转椅; 滚轮, 腰托
# baseline lamp; torchiere, uplighter; shade, foot switch, bulb; 落地灯; 立灯; 灯罩, 脚踏
+ sturdy, comfy, balanced, spacious, polished, firm, smooth, stable;
  稳固, 宽敞, 平整, 牢靠, 厚实, 华贵
- wobbly, creaky, crooked, splintered, saggy, cramped, chipped, lopsided;
  摇晃, 开裂, 脱漆, 塌陷, 歪斜, 硌背
~ frame, joinery, varnish, hardware; 框架, 榫头, 漆面, 螺丝
* flatpack, bespoke, rustic, industrial, whimsical, reclaimed;
  简装, 手作, 田园, 工业风, 童趣, 旧木
? width/span; depth/reach; 45 cm, 60 cm, 120 cm; 宽度/面宽; 深度/进深; 45厘米, 60厘米, 120厘米
? top material/surface wood; leg material/foot wood; oak, pine, walnut; 台面/面板; 腿部/支脚;
  橡木, 松木, 胡桃木
! Measuring my room: {a}? / What would a carpenter call the {a}?;
  量房要用，{a}呢？ / 木工问{a}？

toys; plaything; 玩物; plastic, wood, cotton; Bimbo, Hoppla, Tinkerby, Marchen
# doll; dolly, figurine; braided hair, tiny wardrobe, blinking eyes; 娃娃; 人偶; 辫子, 小裙子
# puzzle; jigsaw, brainteaser; interlocking tabs, sorting tray, picture poster; 拼图; 七巧板;
  拼块, 底图
# kite; glider, windsail; tail ribbons, string reel, crossbars; 风筝; 纸鸢; 线轮, 飘带
# toy car; racer, truck; friction wheels, steering, racing track; 玩具车; 赛车; 车轮, 轨道
# teddy bear; plush, stuffed bear; button nose, bow tie, furry paws; 泰迪熊; 毛绒公仔;
  熊掌, 蝴蝶结
# building blocks; bricks, cubes; studs, baseplate, castle plan; 积木; 拼砌块; 底板, 凸点
# board game; tabletop game, card set; dice, tokens, rule booklet; 桌游; 棋盘; 骰子, 棋子
# robot; android, automaton; antenna, remote legs, led eyes; 机器人; 机甲; 天线, 关节
+ fun, colourful, educational, huggable, imaginative, safe, exciting, adorable;
  益智, 逗乐, 呆萌, 活泼, 炫酷, 神奇
- breakable, tricky, sharp, scary, tacky, babyish, wonky, hollow;
  易碎, 割手, 吓娃, 幼稚, 松垮, 刮手
~ assembly, paint, sound, manual; 零件, 涂装, 音效, 说明书
* pocket, grand, nostalgic, interactive, silly, bamboo; 迷你, 豪华, 老式, 互动, 搞怪, 竹制
? youngest age/minimum age; oldest age/maximum age; 3 years, 6 years, 12 years;
  最小年龄/适龄下限;
  最大年龄/适龄上限; 3岁, 6岁, 12岁
? battery count/cell number; spare count/extras number; two, four, six; 电池数/电芯;
  备件数/附件; 两个, 四个, 六个
! My niece wonders: {a}? / For the birthday, {a}?; 孩子想知道{a}？ / 送生日礼物，{a}？

cosmetics; formula; 美妆; glass, plastic, paper; Pello, Rosina, Belmonde, Éclat
# lipstick; rouge, lip tint; bullet tip, matte pigment, lip liner; 口红; 唇釉; 膏体, 唇线
# shampoo; hair wash, conditioner; lather, scalp care, split ends; 洗发水; 护发素; 泡沫, 头皮
# face cream; lotion, moisturiser; night repair, wrinkles, retinol; 面霜; 乳液; 晚间修护, 抗皱
# perfume; cologne, eau de toilette; atomiser, bergamot, lasting sillage; 香水; 淡香精;
  喷头, 佛手柑
# nail polish; lacquer, varnish; brush cap, cuticle, quick top coat; 指甲油; 甲彩; 刷头, 甲面
# sunscreen; sunblock, uv gel; spf fifty, uva filter, beach bottle; 防晒霜; 隔离乳; 紫外线, 海滩
# mascara; lash ink, lash primer; curved wand, volume lashes, eyelid; 睫毛膏; 睫毛液; 卷翘, 刷杖
# soap; cleansing bar, hand wash; suds, goat milk, shea oil; 香皂; 手工皂; 皂液, 羊奶
+ moisturising, radiant, soothing, velvety, hydrating, glowing, subtle, nourishing;
  滋润, 温和, 服帖, 舒缓, 焕白, 持妆
- sticky, drying, flaky, oily, patchy, chalky, irritating, smudgy;
  黏稠, 假面, 刺痛, 搓泥, 闷痘, 斑驳
~ scent, coverage, recipe, bottle; 气味, 遮瑕, 成分, 瓶身
* mini, luxury, timeless, trendy, glittery, vegan; 小样, 奢华, 永恒, 潮流, 闪粉, 纯素
? top note/opening; base note/dry down; rose, vanilla, cedar; 前调/初香; 尾调/留香;
  玫瑰, 香草, 雪松
? bottle size/content; tester size/sample; 10 ml, 30 ml, 50 ml; 正装规格/净含量; 试用规格/小瓶;
  10毫升, 30毫升, 50毫升
! For my vanity case, {a}? / The counter lady forgot the {a}?; 柜姐没说{a}？ / 敏感肌想问{a}？

sports; gear; 运动装备; steel, plastic, leather; Kickit, Runna, Apexon, Olympe
# bicycle; bike, cruiser; pedals, gear shift, handlebar; 自行车; 单车; 脚踏板, 变速
# tennis racket; racquet, paddle; string bed, overgrip, sweet spot; 网球拍; 球拍; 拍线, 手胶
# football; soccer ball, match ball; stitched panels, bladder, inflating valve; 足球; 比赛用球;
  球胆, 气嘴
# tent; bivouac, shelter; pegs, guy ropes, rain fly; 帐篷; 营帐; 地钉, 防风绳
# skis; snowblades, ski set; bindings, waxed base, carving edges; 滑雪板; 双板; 固定器, 板刃
# dumbbell; weights, kettlebell; hex heads, knurled bar, weight plates; 哑铃; 杠铃; 配重片, 握杆
# yoga mat; gym mat, baseline pad; alignment lines, carry strap, rolled foam; 瑜伽垫; 健身垫;
  体位线, 捆带
# helmet; headgear, hard shell; chin strap, vents, visor peak; 头盔; 护具; 下巴带, 通风孔
+ grippy, lightweight, bouncy, waterproof, agile, supportive, springy, nimble;
  防潮, 便携, 回弹, 减震, 坚韧, 贴合
- slippery, deflated, brittle, leaden, rigid, draughty, chafing, bent;
  磨脚, 弯折, 累赘, 跑偏, 散架, 勒腿
~ grip, padding, buckle, balance; 握把, 衬垫, 卡扣, 重心
* starter, elite, heritage, technical, flashy, biobased; 初学, 竞技, 老牌, 科技, 荧光, 生物基
? maximum load/limit; test load/proof weight; 60 kg, 80 kg, 120 kg; 最大承重/载重上限;
  测试承重/试验载荷; 60公斤, 80公斤, 120公斤
? core/padding layer; cover/outer layer; foam, rubber, nylon; 芯层/填充; 表层/外皮;
  泡棉, 橡胶, 尼龙
! Coach wants to know the {a}? / Before race day, {a}?; 教练问{a}？ / 上场前确认{a}？

computers; device; 电脑设备; plastic, steel, glass; Bytely, Corex, Vantor, Lynxus
# laptop; notebook, ultrabook; trackpad, lid hinge, webcam bezel; 笔记本; 便携电脑; 触控板, 屏轴
# keyboard; keypad, typing board; keycaps, switches, space bar; 键盘; 机械键; 键帽, 轴体
# mouse; trackball, pointer; scroll wheel, side buttons, dpi sensor; 鼠标; 轨迹球; 滚动轮, 侧键
# monitor; display, flat panel; stand, refresh rate, bezel; 显示器; 液晶屏; 底座, 刷新率
# printer; inkjet, laser copier; ink cartridges, paper tray, scanner lid; 打印机; 复印机;
  墨盒, 进纸
# router; modem, access point; antennas, guest network, lan ports; 路由器; 无线网关;
  信号天线, 网口
# webcam; video camera, conference cam; privacy cover, tripod thread, autofocus; 摄像头;
  会议相机;
  遮挡盖, 对焦
# hard drive; ssd, backup disk; platters, read cache, sata plug; 硬盘; 固态盘; 磁碟, 缓存
+ fast, silent, accurate, seamless, versatile, ergonomic, compatible, precise;
  迅捷, 准确, 兼备, 给力, 齐全, 飞驰
- crashing, overheating, jammed, flickering, buggy, sluggish, outdated, faulty;
  蓝屏, 断网, 闪退, 过时, 报错, 瘫痪
~ driver, cooling, software, cable; 驱动, 散热, 软件, 线缆
* student, professional, plain, ultrathin, neon, certified; 学生, 专业, 素雅, 超薄, 霓虹, 认证
? memory/ram; flash store/ssd space; 8 GB, 16 GB, 64 GB; 内存/运存; 闪存/固态空间;
  8GB, 16GB, 64GB
? front port/front plug; rear port/back plug; usb, hdmi, ethernet; 前接口/前插口; 后接口/后插口;
  USB口, HDMI口, 网线口
! Driver install asks for the {a}? / Our admin wants the {a}?; 装机要看{a}？ / 网管问{a}？
"""
